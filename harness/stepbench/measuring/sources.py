"""Which code is this? Digests and trees of the package and the workload that a worker runs."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import stepbench
from stepbench.source_roots import PACKAGE
from stepbench.training.workloads.own import source_of
from stepbench.training.workloads.spelling import parameters

# Set by whoever measures a commit: the tree that the measured code must come from.
PROJECT_TREE = "STEPBENCH_PROJECT_TREE"


@cache
def digest_of_package() -> str:
    """SHA-256 over the names and contents of the package's Python files, 16 hex digits.

    A path would name the machine; a digest names the code.
    """
    root = _root()
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def digest_of_workload(spelling: str) -> str | None:
    """SHA-256 of the file that a workload of the user's own came from; None for one of ours."""
    source = _own_source(spelling)
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16] if source else None


def versions(modules: Iterable[str]) -> dict[str, str]:
    """The version of each library that the modules belong to."""
    return {name: version(name) for name in (module.partition(".")[0] for module in modules)}


def wrong_tree(spelling: str) -> str | None:
    """Why the code that was imported is not the commit's, or None.

    A commit of Stepbench itself must bring the package; one of another project, the workload,
    while the ruler stays what is installed.
    """
    if name := mixed_module():
        return f"{name} came from another tree than the rest of the package, in {_root()}"
    wanted = os.environ.get(PROJECT_TREE)
    if wanted is None:
        return None
    tree = Path(wanted).resolve()
    what, came_from = "package stepbench", _root()
    if not (tree / PACKAGE).is_dir():
        what, came_from = "workload", _own_source(spelling) or tree
    if came_from.is_relative_to(tree):
        return None
    return f"the {what} came from {came_from}, not from the commit's tree {wanted}"


def mixed_module() -> str | None:
    """A module of the package that came from another tree than the rest, or None.

    An editable installation finds what the first tree on the path lacks.
    """
    for name, module in sys.modules.copy().items():
        file = getattr(module, "__file__", None)
        if (
            name.startswith("stepbench.")
            and file
            and not Path(file).resolve().is_relative_to(_root())
        ):
            return name
    return None


def _own_source(spelling: str) -> Path | None:
    name = parameters(spelling)[0]
    source = source_of(name) if ":" in name else None
    return Path(source).resolve() if source else None


def _root() -> Path:
    assert stepbench.__file__ is not None
    return Path(stepbench.__file__).resolve().parent

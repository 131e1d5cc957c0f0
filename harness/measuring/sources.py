"""Which code is this? The digest and the tree of the harness that a worker runs."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import harness

# Set by whoever measures a commit: the tree that `harness` must come from.
PROJECT_TREE = "STEPBENCH_PROJECT_TREE"


@cache
def digest_of_harness() -> str:
    """SHA-256 over the names and contents of the harness' Python files, 16 hex digits.

    A path would name the machine; a digest names the code.
    """
    root = _root()
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def wrong_tree() -> str | None:
    """Why the harness that was imported is not the one to be measured, or None."""
    wanted = os.environ.get(PROJECT_TREE)
    if wanted is None or _root().is_relative_to(Path(wanted).resolve()):
        return None
    return f"the harness came from {_root()}, not from the commit's tree {wanted}"


def _root() -> Path:
    assert harness.__file__ is not None
    return Path(harness.__file__).resolve().parent

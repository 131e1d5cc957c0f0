"""ASV's environment "checkout": this interpreter, a commit's own tree first on its path.

ASV's own kinds either build a new environment (no GPU host's torch survives that) or measure only
what is installed. Here torch stays, its version is an axis, and commits are switched by checking
them out. Benchmarks are today's; what they measure is the commit's. In a project that is not
Stepbench itself that is the workload, and the ruler stays the installed one.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

from asv import util
from asv.console import log
from asv.environment import Environment, EnvironmentUnavailable

from stepbench.gate.trees import overlay
from stepbench.history import COMMIT, REFUSAL, RESULTS, ROUNDS, RUN, TREE
from stepbench.history.configuration import told_by_asv
from stepbench.report import formats
from stepbench.source_roots import PACKAGE, import_roots, lacks
from stepbench.store import RunFile

TODAY = Path(__file__).resolve().parents[3]
# Where a commit says by which versions it measures and records.
VERSIONS = ("MEASURE_VERSION", "RECORD_VERSION")
SUITE = "history/suite.py"


class Checkout(Environment):  # type: ignore[misc]
    """One commit at a time in a folder below `env_dir`, run by the interpreter that runs ASV."""

    tool_name = "checkout"
    matches_python_fallback = False

    def __init__(
        self,
        conf: Any,
        python: str,
        requirements: dict[str, str],
        tagged_env_vars: Mapping[tuple[str, str], str],
    ) -> None:
        if requirements:
            raise EnvironmentUnavailable(
                'the environment "checkout" installs nothing; take the requirements '
                f"{', '.join(requirements)} out of asv.conf.json's matrix"
            )
        if not self.matches(python):
            raise EnvironmentUnavailable(
                f'the environment "checkout" runs Python {_python()}, not {python}'
            )
        self._repo_path = Path(conf.repo)
        self._today = self._repo_path.resolve() if self._repo_path.is_dir() else TODAY
        self._results = Path(conf.results_dir).resolve()
        self._commit: str | None = None
        self._children: dict[str, str] = {}
        self._requirements = {"torch": version("torch")}  # part of the name that ASV's init needs
        super().__init__(conf, python, self._requirements, tagged_env_vars)

    @classmethod
    def matches(cls, python: str) -> bool:
        """Whether that is this interpreter's version, `3.11`."""
        return python == _python()

    @property
    def installed_commit_hash(self) -> str | None:
        """The commit checked out by this process; what another one left behind is not trusted."""
        return self._commit

    def check_presence(self) -> bool:
        return Path(self._path).is_dir()

    def _setup(self) -> None:
        Path(self._path).mkdir(parents=True)

    def install_project(self, conf: Any, repo: Any, commit_hash: str) -> None:
        """Check the commit's tree out and see whether today's ruler can measure it."""
        _point_out_edits(self._repo_path, self._results)
        self.checkout_project(repo, commit_hash)
        if name := getattr(conf, "workload_file", None):
            with told_by_asv():
                tree = Path(self._build_root)
                overlay(self._repo_path, self._repo_path / name, tree)
        self._commit = commit_hash
        refusal = _refusal(Path(self._build_root), self._today, commit_hash)
        self._children = {COMMIT: commit_hash}
        if refusal:
            log.warning(refusal)
            self._children |= {REFUSAL: refusal, TREE: str(self._today)}
        else:
            self._children |= {TREE: self._build_root}

    def run(self, args: Sequence[str], **kwargs: Any) -> Any:
        """Run this interpreter on `args`, the commit's tree first on its path.

        Discovery and check take today's tree, so that measuring an old commit does not make ASV
        forget the benchmarks of later ones.
        """
        children = {**self._children}
        if not {"discover", "check"}.isdisjoint(args):
            children[TREE] = str(self._today)
        environ = {**kwargs.pop("env", os.environ), **children}
        first = import_roots(Path(children[TREE])) if TREE in children else []
        path = filter(None, (*first, environ.get("PYTHONPATH")))
        # ASV's child takes PYTHONPATH off its path again unless it stands here too.
        environ["PYTHONPATH"] = environ["ASV_PYTHONPATH"] = os.pathsep.join(path)
        return util.check_output([sys.executable, *args], env=environ, **kwargs)

    @contextmanager
    def recording(self, rounds: int) -> Iterator[None]:
        """Give the commit's benchmarks a run to record in, closed when all of them went through.

        Whatever interrupts them leaves it open, and the next `asv run` goes on from there.
        """
        opened = Path(self._path) / "run"
        opened.unlink(missing_ok=True)
        self._children |= {RUN: str(opened), RESULTS: str(self._results), ROUNDS: str(rounds)}
        yield
        if opened.exists():
            from stepbench.measuring.sweep import close_sweep  # torch: not for `asv show`

            file = RunFile.read(Path(opened.read_text(encoding="utf-8")))[0]
            close_sweep(file)
            for reason in dict.fromkeys(one.outcome.reason for one in file.records):
                if reason:  # ASV itself says no more than n/a or failed
                    log.warning(formats.plain(reason))


def recorded(run_benchmarks: Callable[..., Any]) -> Callable[..., Any]:
    """ASV's `run_benchmarks`, in a run of ours where the environment is a checkout.

    ASV has no hook for "a commit's benchmarks begin" and "they all went through".
    """

    @wraps(run_benchmarks)
    def run_recorded(benchmarks: Any, env: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(env, Checkout):
            return run_benchmarks(benchmarks, env, *args, **kwargs)
        rounds = _rounds(kwargs.get("quick", False), kwargs.get("extra_params") or {})
        with told_by_asv(), env.recording(rounds):
            return run_benchmarks(benchmarks, env, *args, **kwargs)

    return run_recorded


def _rounds(quick: bool, attributes: Mapping[str, Any]) -> int:
    """`--quick` and `-a repeat=N` as our rounds; UserError for what ASV would do wrong."""
    if attributes.get("rounds", 1) != 1:
        raise util.UserError(
            f"-a rounds={attributes['rounds']}: ASV would store each case's one measurement that "
            f"often; ask for more rounds by -a repeat={attributes['rounds']}"
        )
    repeat = 1 if quick else attributes.get("repeat", 2)
    if not isinstance(repeat, int) or repeat < 1:
        raise util.UserError(f"-a repeat={repeat}: how many rounds is one number from 1 on")
    return repeat


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _refusal(tree: Path, today: Path, commit: str) -> str | None:
    """Why today's benchmarks cannot measure the commit, or None."""
    if why := lacks(tree, today, SUITE):
        return f"commit {commit[:8]} is skipped: {why}"
    if not (tree / PACKAGE).is_dir():  # of another project
        return None
    theirs, ours = _versions(tree), _versions(TODAY)
    if theirs != ours:
        return f"commit {commit[:8]} is skipped: its package has {theirs}; today's, {ours}"
    return None


def _versions(tree: Path) -> str:
    """`MEASURE_VERSION 1, RECORD_VERSION 1`, read without running what the tree holds."""
    path = tree / PACKAGE / "versions.py"
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = []
    for name in VERSIONS:
        match = re.search(rf"^{name} = (\d+)$", source, re.MULTILINE)
        found.append(f"{name} {match[1]}" if match else f"no {name}")
    return ", ".join(found)


@cache
def _point_out_edits(repo: Path, results: Path) -> None:
    """One line where the working tree holds what no commit does; results are not such."""
    if not repo.is_dir():
        return
    command = ["git", "-C", str(repo), "status", "--porcelain", "-z", "--", "."]
    top = repo.resolve()
    if results.is_relative_to(top):
        command.append(f":!{results.relative_to(top)}")
    status = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    edited = [entry[3:] for entry in status.split("\0") if entry[2:3] == " "]
    if edited:
        more = f" and {len(edited) - 1} more" if len(edited) > 1 else ""
        log.warning(f"uncommitted edits are not measured, only commits are: {edited[0]}{more}")

"""Both sides' source in folders of their own, so that nothing edited meanwhile is measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stepbench.errors import StepbenchError
from stepbench.gate import pins
from stepbench.source_roots import lacks

# What the gate starts in a tree of this package's own repository.
FORK_SERVER = "measuring/fork_server.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A side's source: `folder` to import from, `name` for people, the libraries it asks for."""

    folder: Path
    name: str
    pins: pins.Pins = field(default_factory=dict)


def overlay(project: Path, file: Path, tree: Path) -> str:
    """Put today's file of a project where a tree of it has or lacks it; its name in the project.

    Raises:
        StepbenchError: the file is none of the project's, or the tree has a package of its name.
    """
    if not file.is_file():
        raise StepbenchError(f"{file} is no file; name the workload's")
    if not file.resolve().is_relative_to(project.resolve()):
        raise StepbenchError(
            f"{file} must lie in {project}, from where workloads are imported; it need not be "
            "committed"
        )
    name = file.resolve().relative_to(project.resolve())
    copy = tree / name
    if copy.with_suffix("").is_dir():
        raise StepbenchError(f"an older tree has a folder {name.with_suffix('')} in {name}'s place")
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)  # a link there may lead out of the tree
    shutil.copyfile(file, copy)
    return name.as_posix()


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A repository's top folder, and where in it the project's code is imported from."""

    top: Path
    below: Path

    @classmethod
    def at(cls, folder: Path) -> Project:
        """The repository that holds a folder; StepbenchError where there is none."""
        if not folder.is_dir():
            raise StepbenchError(f"{folder} is no folder; name a repository's")
        top = _git(folder, "rev-parse", "--show-toplevel")
        if top is None:
            raise StepbenchError(f"{folder} is in no git repository; the gate compares its commits")
        return cls(top=Path(top), below=folder.resolve().relative_to(Path(top).resolve()))

    def commit(self, name: str) -> str:
        """A commit's full hash; StepbenchError where there is no such commit."""
        found = _git(self.top, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if found is None:
            raise StepbenchError(f"{name!r} is no commit of {self.top}; see `git log`")
        return found

    def merge_base(self) -> str:
        """Where HEAD left the default branch: `origin/HEAD`, or else `main` or `master`.

        Raises:
            StepbenchError: there is no such branch, or the working tree is that very commit.
        """
        remote = _git(self.top, "symbolic-ref", "--short", "refs/remotes/origin/HEAD")
        for branch in filter(None, (remote, "main", "master")):
            if base := _git(self.top, "merge-base", "HEAD", branch):
                if base == self.commit("HEAD") and not _git(self.top, "status", "--porcelain"):
                    raise StepbenchError(
                        f"the working tree is {branch} without edits; name a base: HEAD^"
                    )
                return base
        raise StepbenchError(
            f"{self.top} has no default branch (origin/HEAD, main, master); name the base commit"
        )

    @contextmanager
    def tree(self, commit: str | None, workload_file: Path | None = None) -> Iterator[Tree]:
        """A copy of a commit, or of the working tree with its edits (None); removed after.

        Files that git ignores and submodules are in neither. `workload_file` is today's in both.

        Raises:
            StepbenchError: a commit of Stepbench that lacks the gate, or see `overlay`.
        """
        with tempfile.TemporaryDirectory(prefix="stepbench-") as made:
            folder = Path(made).resolve()
            if commit is None:
                self._copy_working_tree(folder)
                name = "the working tree"
            else:
                self._check_out(commit, folder)
                name = f"commit {commit[:10]}"
            source = folder / self.below
            asked = pins.read(folder, source)
            if workload_file:
                name += f" with today's {overlay(self.top / self.below, workload_file, source)}"
            if not source.is_dir():
                raise StepbenchError(f"{name} has no folder {self.below}")
            if why := lacks(source, self.top / self.below, FORK_SERVER):
                raise StepbenchError(f"{name} cannot be gated: {why}; name a later commit")
            yield Tree(folder=source, name=name, pins=asked)

    def _check_out(self, commit: str, folder: Path) -> None:
        """With an index of its own: the repository is left as it is, whatever happens."""
        index = {**os.environ, "GIT_INDEX_FILE": str(folder / ".index")}
        _must(self.top, "read-tree", commit, env=index)
        _must(self.top, "checkout-index", "--all", f"--prefix={folder}/", env=index)
        (folder / ".index").unlink()

    def _copy_working_tree(self, folder: Path) -> None:
        listed = _must(self.top, "ls-files", "-z", "-co", "--exclude-standard")
        for name in filter(None, listed.split("\0")):
            source, copy = self.top / name, folder / name
            if source.is_symlink() or source.is_file():  # not what was deleted, nor submodules
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy, follow_symlinks=False)


def _git(folder: Path, *arguments: str) -> str | None:
    """git's answer, or None where it has none."""
    done = _run(folder, arguments, dict(os.environ))
    return done.stdout.strip() if done.returncode == 0 else None


def _must(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    done = _run(folder, arguments, env or dict(os.environ))
    if done.returncode:
        told = next(iter(done.stderr.strip().splitlines()), "no reason given")
        raise StepbenchError(f"git {arguments[0]} in {folder}: {told}")
    return done.stdout


def _run(
    folder: Path, arguments: tuple[str, ...], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=env,
        )
    except OSError as error:
        raise StepbenchError(f"git cannot be started: {error.strerror}; install it") from error

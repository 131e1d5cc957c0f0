"""A toy project: our own ASV side over invented measurements, in a git repository of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stepbench.source_roots import PACKAGE
from stepbench.store import RunFile, read_all

ROOT = Path(__file__).resolve().parents[2]
FAKES = Path(__file__).parent / "toy"
BENCHMARKS = ("__init__", "precision", "accumulation", "checkpointing", "product", "product_full")
ASV = Path(sys.executable).parent / "asv"

# Techniques without torch, so that a run of ASV takes seconds.
TECHNIQUES = """
from stepbench.records.case import Combination
from stepbench.errors import StepbenchError

def parse(text):
    chosen = [name for name in text.split("+") if name not in ("fp32", "accum1", "ckpt0")]
    if "int3" in chosen:
        raise StepbenchError("'int3' is not a technique")
    return Combination({f"axis {name}": name for name in chosen})

def plan_of(combination):
    raise NotImplementedError  # for who measures for real
"""


@dataclass
class Toy:
    """A repository below `folder`, and a home of its own for ASV's machine file."""

    folder: Path
    home: Path
    log: Path
    environ: dict[str, str] = field(default_factory=dict)

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=Toy", "-c", "user.email=toy@example.org")
        command = ["git", "-C", str(self.folder), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, message: str, changes: Mapping[str, tuple[str, str]] | None = None) -> str:
        """Commit everything, after {file: (old text, new text)} changes; returns the hash."""
        for name, (old, new) in (changes or {}).items():
            path = self.folder / name
            source = path.read_text()
            assert old in source
            path.write_text(source.replace(old, new))
        self.git("add", "-A")
        return self.commit_index(message)

    def commit_index(self, message: str) -> str:
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(ASV), *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def asv(self, *arguments: str, code: int = 0, **environ: str) -> str:
        """What ASV said; it has to end with `code`."""
        process = self.start(*arguments, **environ)
        said, _ = process.communicate(timeout=600)
        assert process.returncode == code, said
        return said

    def runs(self) -> list[RunFile]:
        files, problems = read_all(self.folder / "results")
        assert not problems
        return files

    def measured(self) -> list[str]:
        """`commit tree combination rounds` of every measurement so far."""
        return self.log.read_text().splitlines() if self.log.exists() else []


def stored(toy: Toy, commit: str, benchmark: str) -> dict[str, Any]:
    """What ASV saved of a benchmark, by column."""
    (path,) = (toy.folder / "results").glob(f"*/{commit[:8]}-*.json")
    saved = json.loads(path.read_text())
    return dict(zip(saved["result_columns"], saved["results"][benchmark], strict=False))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    folder = tmp_path / "project"
    package = folder / PACKAGE
    for path in (ROOT / PACKAGE).glob("*.py"):
        _copy(path, package)
    for name in ("__init__", "pins", "trees"):
        _copy(ROOT / PACKAGE / "gate" / f"{name}.py", package / "gate")
    for name in BENCHMARKS:
        _copy(ROOT / "benchmarks" / f"{name}.py", folder / "benchmarks")
    for name in ("history", "metrics", "records", "report", "stats"):
        shutil.copytree(
            ROOT / PACKAGE / name, package / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("asv.conf.json", ".gitignore"):
        _copy(ROOT / name, folder)
    _copy(FAKES / "sweep.py", package / "measuring")
    _copy(ROOT / "harness/stepbench/measuring/settings.py", package / "measuring")
    _copy(ROOT / "tests/synthetic.py", package / "measuring")
    _copy(FAKES / "subject.py", package / "training")
    _write(package / "training/techniques.py", TECHNIQUES)
    _write(package / "training/workloads.py", "canonical = str\n")
    log = tmp_path / "measured.txt"
    # As if the project were installed: ASV imports the plug-in from here.
    installed = {"PYTHONPATH": str(folder / "harness")}
    environ = {"HOME": str(tmp_path), "STEPBENCH_TOY_LOG": str(log), **installed}
    toy = Toy(folder=folder, home=tmp_path, log=log, environ=environ)
    toy.git("init", "-q", "-b", "trunk")
    toy.commit("first")
    return toy


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

"""The real measuring below ASV: the commit's own code runs, or the case fails."""

from __future__ import annotations

import shutil

from tests.history.conftest import ROOT, Toy

IGNORED = shutil.ignore_patterns("__pycache__")
CASE = r"precision.*\('bf16'\)"


def test_the_commits_own_code_runs_and_another_tree_is_caught(toy: Toy) -> None:
    shutil.rmtree(toy.folder / "harness")
    shutil.copytree(ROOT / "harness", toy.folder / "harness", ignore=IGNORED)
    toy.commit("the real harness")
    toy.asv("run", "--quick", "-b", CASE)
    (run,) = toy.runs()
    (record,) = run.records
    assert record.outcome.ok, record.outcome
    assert run.run.commit == toy.git("rev-parse", "HEAD")
    assert run.run.settings["rounds"] == 1
    assert 1 <= len(record.rounds) <= 2  # once more where something disturbed it

    planted = toy.home / "planted"
    shutil.copytree(ROOT / "harness", planted / "harness", ignore=IGNORED)
    benchmarks = toy.folder / "benchmarks/__init__.py"
    plant = f"import sys\n\nsys.path.insert(0, {str(planted / 'harness')!r})\n"
    benchmarks.write_text(plant + benchmarks.read_text())
    said = toy.asv("run", "-b", CASE, code=2)
    record = toy.runs()[-1].records[0]
    assert record.outcome.kind == "failed"
    assert f"came from {planted}" in str(record.outcome.reason)
    assert str(record.outcome.reason) in said

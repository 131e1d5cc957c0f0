"""A stranger's repository: `stepbench init`, then ASV over its commits, the ruler ours."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from stepbench.errors import StepbenchError
from stepbench.history.project import PLACEHOLDER, start
from stepbench.history.publish import publish
from tests.command import stepbench
from tests.history.conftest import Toy, stored
from tests.stranger import TRAIN

SLOWER = {"train.py": ("EXTRA = 0", "EXTRA = 2000")}
HEAVIER = {"train.py": ("torch.zeros(0)", "torch.zeros(2**22)")}
STEP_S, PEAK_BYTES = (f"techniques.Techniques.measure_{name}" for name in ("step_s", "peak_bytes"))


@pytest.fixture
def own(tmp_path: Path) -> Toy:
    folder = tmp_path / "mine"
    folder.mkdir()
    toy = Toy(folder=folder, home=tmp_path, log=tmp_path / "none", environ={"HOME": str(tmp_path)})
    toy.git("init", "-q", "-b", "trunk")
    return toy


def init(folder: Path, *arguments: str, code: int = 0) -> str:
    """What `stepbench init` said; it has to end with `code`."""
    done = stepbench("init", *arguments, cwd=folder, code=code)
    return done.stdout + done.stderr


def changed(toy: Toy, *commits: str) -> list[str]:
    """The benchmarks that `asv compare` marks as twice as bad: one round is noisy."""
    table = toy.asv("compare", "--factor", "2", *commits)
    return [line.split()[-2] for line in table.splitlines() if line.startswith("| +")]


def test_what_was_planted_is_seen_where_it_was_planted(own: Toy) -> None:
    (own.folder / "README").write_text("soon\n")
    before = own.commit("before there is a workload")
    (own.folder / "train.py").write_text(TRAIN)
    init(own.folder, "train:workload")
    assert own.git("status", "--porcelain", "-uall").split() == [
        *("??", "asv.conf.json", "??", "benchmarks/__init__.py"),
        *("??", "benchmarks/techniques.py", "??", "train.py"),
    ]
    first = own.commit("the workload")
    own.commit("nothing")
    slow = own.commit("slower", SLOWER)
    own.commit("nothing")
    heavy = own.commit("heavier", HEAVIER)
    own.commit("nothing")
    said = own.asv("run", "--quick", "-b", r"(step_s|peak_bytes)\('baseline'\)", "ALL")

    assert said.count("workload train:workload: ModuleNotFoundError: No module named 'train'") == 1
    assert math.isnan(stored(own, before, STEP_S)["result"][0])
    # A disturbed round is measured again, and ASV calls no two samples different.
    slower, faster = (stored(own, commit, STEP_S)["result"][0] for commit in (slow, first))
    assert slower > 2 * faster
    assert f"{PEAK_BYTES}('baseline')" not in changed(own, first, slow)
    assert changed(own, slow, heavy) == [f"{PEAK_BYTES}('baseline')"]
    assert "measure_step_s" in own.asv("show", heavy)

    html = publish(own.folder)
    revisions = json.loads((html / "index.json").read_text())["revision_to_hash"]
    largest = {
        name: revisions[str(max(jumps, key=lambda jump: jump[3] / jump[2])[1])]
        for name, *_, jumps in json.loads((html / "regressions.json").read_text())["regressions"]
    }
    assert largest[f"{STEP_S}('baseline')"] == slow
    assert largest[f"{PEAK_BYTES}('baseline')"] == heavy
    assert "train:workload" in (html / "techniques/techniques.html").read_text()

    digests = {
        run.run.commit: one.case.environment["workload_digest"]
        for run in own.runs()
        for record in run.records
        for one in record.rounds
    }
    assert len(digests) == 6
    assert digests[first] != digests[slow] != digests[heavy]


def test_todays_workload_measures_a_commit_that_lacks_it(own: Toy) -> None:
    (own.folder / "parts.py").write_text(TRAIN)
    before = own.commit("before there is a workload")
    heavy = own.commit("heavier", {"parts.py": HEAVIER["train.py"]})
    (own.folder / "train.py").write_text("from parts import workload\n")
    init(own.folder, "train:workload")
    config = own.folder / "asv.conf.json"
    config.write_text(config.read_text().replace('// "workload_file"', '"workload_file"'))
    own.commit("the workload")
    own.asv("run", "--quick", "-b", r"peak_bytes\('baseline'\)", "ALL")
    light, more = (stored(own, commit, PEAK_BYTES)["result"][0] for commit in (before, heavy))
    assert more - light == pytest.approx(2**24, rel=0.01)


def test_a_src_layout_is_the_commits_and_an_installed_copy_is_caught(own: Toy) -> None:
    for folder in (own.folder / "src", own.home / "installed"):
        folder.mkdir()
        (folder / "train.py").write_text(TRAIN)
    start(own.folder, None)
    techniques = own.folder / "benchmarks/techniques.py"
    assert PLACEHOLDER in techniques.read_text()
    right = own.commit("in src")
    own.git("mv", "src", "lib")
    wrong = own.commit("out of sight")
    case, installed = ("-b", r"step_s\('baseline'\)"), str(own.home / "installed")
    own.asv("run", "--quick", *case, "HEAD~1^!", PYTHONPATH=installed)
    own.asv("run", "--quick", *case, "HEAD^!", PYTHONPATH=installed, code=2)
    outcomes = {run.run.commit: run.records[0].outcome for run in own.runs()}
    assert outcomes[right].ok, outcomes[right]
    assert outcomes[wrong].kind == "failed"
    assert f"the workload came from {installed}" in str(outcomes[wrong].reason)


@pytest.mark.parametrize("there", ["asv.conf.json", "benchmarks/mine.py", "stepbench/mine.py"])
def test_init_overwrites_nothing(own: Toy, there: str) -> None:
    path = own.folder / there
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    (line,) = init(own.folder, code=2).splitlines()
    assert there.partition("/")[0] in line
    assert [one for one in own.folder.rglob("*") if ".git" not in one.parts and one.is_file()] == [
        path
    ]
    assert path.read_text() == "mine"


def test_init_twice_says_what_exists(own: Toy) -> None:
    assert f"name your workload instead of {PLACEHOLDER}" in init(own.folder)
    assert "asv.conf.json exists here already" in init(own.folder, code=2)


def test_init_elsewhere_or_with_no_workload_writes_nothing(own: Toy) -> None:
    below = own.folder / "below"
    below.mkdir()
    with pytest.raises(
        StepbenchError, match=f"not a repository's top folder; run this in {own.folder}"
    ):
        start(below, None)
    with pytest.raises(StepbenchError, match="`git init` makes it one"):
        start(own.home, None)
    with pytest.raises(StepbenchError, match="name it as module:attribute"):
        start(own.folder, "gpt-1m")
    with pytest.raises(StepbenchError, match="No module named 'nowhere'"):
        start(own.folder, "nowhere:workload")
    assert [one.name for one in own.folder.iterdir() if one.name != ".git"] == ["below"]

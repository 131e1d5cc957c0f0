"""The command on real repositories: what was planted is named; nothing here depends on a clock."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stepbench.cli import gate as cli_gate
from stepbench.cli import main as cli
from stepbench.cli.options import Output
from stepbench.errors import StepbenchError
from stepbench.gate import accepted as baselines
from stepbench.gate import command
from stepbench.gate import comparison as trial
from stepbench.gate.counters import tally
from stepbench.gate.gate import Session, Terms
from stepbench.gate.trees import Tree
from stepbench.measuring import pairs
from stepbench.records.case import Case
from stepbench.records.outcome import Outcome
from stepbench.records.verdict import CaseVerdict, Gate
from tests.command import stepbench
from tests.gate.test_tallies import counting
from tests.gate.test_trees import git
from tests.stranger import TRAIN
from tests.synthetic import MACHINE, MIB, measurement

OPERATOR = ("EXTRA = 0", "EXTRA = 1")
MINE = Case(workload="train:workload")
LEAK = ("torch.zeros(0)", "torch.zeros(2**18)")  # 1 MiB of float32


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "train.py").write_text(TRAIN)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def edit(folder, old, new):
    source = (folder / "train.py").read_text()
    assert old in source
    (folder / "train.py").write_text(source.replace(old, new))


def asked(folder, **changes):
    """The gate's first commit against the working tree, by counters only unless it says so."""
    fields = {
        "project": folder,
        "base": "HEAD",
        "head": None,
        "workload": None,
        "terms": Terms(time="off"),
    }
    return command.Asked(**fields | changes)


def compared(folder, code, **changes):
    """What the command showed; it has to end with `code`."""
    shown = []
    assert command.compare(asked(folder, **changes), [MINE], print, shown.append) == code
    [result] = shown
    return result


def test_planted_leaks_are_found_with_no_clock(project):
    edit(project, *OPERATOR)
    edit(project, *LEAK)
    git(project, "commit", "-q", "-am", "second")
    [case] = compared(project, 1, base="HEAD^", head="HEAD").cases
    assert (case.verdict, case.time) == ("regression", None)
    operators, held = (
        next(one for one in case.differences if one.figure == figure)
        for figure in ("operators", "steady_peak")
    )
    assert operators.change == held.change == "worse"
    assert any("aten.mm: 3 -> 4 (+1)" in line for line in operators.detail)
    assert held.new - held.old == MIB
    assert any(f"(+{MIB:,})" in line for line in held.detail)


LATE = """
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 20:
            self.held = [*self.held, torch.ones(2**18)]
        for _ in range(EXTRA):"""


def test_growth_that_begins_after_twenty_steps_is_found(project):
    edit(project, "\n        for _ in range(EXTRA):", LATE)
    [case] = compared(project, 1).cases
    [grown] = [one for one in case.differences if one.figure == "growth_per_step"]
    assert (grown.change, grown.old) == ("worse", 0)
    assert MIB <= grown.new < 1.5 * MIB


@pytest.mark.parametrize(
    ("epsilon", "verdict", "change", "code"),
    [("1e-4", "none", "changed", 0), ("1.0", "changed", "beyond tolerance", 1)],
)
def test_a_changed_epsilon_of_a_layernorm_is_told(project, epsilon, verdict, change, code):
    edit(project, "nn.ReLU()", "nn.LayerNorm(256)")
    git(project, "commit", "-q", "-am", "normalized")
    edit(project, "nn.LayerNorm(256)", f"nn.LayerNorm(256, eps={epsilon})")
    [case] = compared(project, code).cases
    assert case.verdict == verdict
    changes = {one.figure: one.change for one in case.differences}
    assert (changes["loss"], changes["gradient_norm"]) == (change, change)


def test_a_candidate_that_breaks_is_told_before_the_reference_is_measured(project):
    edit(project, "import torch\n", "import torch\nimport nowhere\n")
    git(project, "commit", "-q", "-am", "broken")
    lines, shown = [], []
    given = asked(project, base="HEAD^", head="HEAD")
    assert command.compare(given, [MINE], lines.append, shown.append) == 1
    assert lines[:2] == [
        "train:workload baseline: counting",
        "train:workload baseline: candidate: failed: workload train:workload: "
        "ModuleNotFoundError: No module named 'nowhere'",
    ]
    assert shown[0].cases[0].reference.ok


def test_todays_workload_file_measures_commits_that_lack_it(project):
    git(project, "mv", "train.py", "parts.py")
    git(project, "commit", "-q", "-m", "before there was a workload")
    (project / "train.py").write_text("from parts import workload\n")
    git(project, "add", "train.py")
    git(project, "commit", "-q", "-m", "a workload")
    source = (project / "parts.py").read_text()
    (project / "parts.py").write_text(source.replace(*OPERATOR))
    git(project, "commit", "-q", "-am", "busier")
    result = compared(project, 1, base="HEAD~2", head="HEAD", workload_file=project / "train.py")
    [case] = result.cases
    assert case.reference.ok
    assert "aten.mm: 3 -> 4 (+1)" in case.differences[0].detail
    assert result.reference.endswith("with today's train.py")


def test_time_is_judged_of_the_working_tree_and_every_output_written(
    project, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(trial, "WANTED", {"screen": 3, "measure": 4, "confirm": 2})
    monkeypatch.setattr(pairs, "BLOCKS", 2)
    edit(project, "EXTRA = 0", "EXTRA = 40")
    junit, plot = tmp_path / "gate.xml", tmp_path / "gate.html"
    show = cli_gate._printer(Output(format="markdown", file=None), junit, plot)
    assert command.compare(asked(project, terms=Terms()), [MINE], print, show) == 1
    shown = capsys.readouterr().out
    assert "the working tree against commit" in shown
    assert "| train:workload baseline | regression |" in shown
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert suite.find("testcase").get("name") == "train:workload baseline"
    assert "aten.mm" in suite.find("testcase/failure").text
    assert "CPU time" in plot.read_text()


def test_the_command_accepts_counters_and_holds_them_against_the_working_tree(project):
    chosen = ("-w", "train:workload", "-c", "baseline")
    done = stepbench("gate", *chosen, "--accept", cwd=project)
    [written] = (project / baselines.FOLDER).glob("*.json")
    assert str(written) in done.stdout
    assert json.loads(written.read_text())["cases"].keys() == {"train:workload baseline"}
    shown = []
    assert command.against_baselines(asked(project), [MINE], print, shown.append) == 0
    edit(project, *OPERATOR)
    assert command.against_baselines(asked(project), [MINE], print, shown.append) == 1
    equal, worse = (result.cases[0].differences for result in shown)
    assert equal == ()
    assert "aten.mm: 3 -> 4 (+1)" in worse[0].detail


def stored(folder, figures):
    """Accept a tally made by hand."""
    return baselines.accept(folder, MACHINE, {CASE: tally([figures])})[0]


CASE, OTHER = Case(workload="gpt-tiny"), Case(workload="gpt-1m")
TREE = Tree(folder=Path(), name="the working tree")


def against(folder, found, machine=MACHINE):
    return baselines.against(folder, machine, found, TREE)


def test_a_better_figure_proposes_a_baseline_and_a_worse_one_fails(tmp_path):
    stored(tmp_path, counting(flops=1000))
    better = against(tmp_path, {CASE: tally([counting(flops=900)])})
    assert (better.cases[0].verdict, better.exit_code) == ("improvement", 0)
    worse = against(tmp_path, {CASE: tally([counting(flops=1001)])})
    assert (worse.cases[0].verdict, worse.exit_code) == ("regression", 1)
    gone = against(tmp_path, {CASE: Outcome(kind="failed", reason="broken")})
    assert (gone.cases[0].verdict, gone.exit_code) == ("regression", 1)


def test_unknown_cases_and_kinds_of_machine_do_not_pass_in_silence(tmp_path):
    path = stored(tmp_path, measurement())
    unknown = against(tmp_path, {OTHER: tally([measurement()])})
    assert "no baseline for this case" in unknown.cases[0].refused
    assert unknown.exit_code == 2
    other = {**MACHINE, "instruction_set": "AVX512"}
    with pytest.raises(StepbenchError, match=r"no baseline for .*instruction_set: AVX512"):
        against(tmp_path, {CASE: tally([measurement()])}, other)
    with pytest.raises(StepbenchError, match=r"no baseline for .*threads: 2"):
        baselines.accepted(tmp_path, MACHINE, threads=2)
    path.write_text(path.read_text().replace('"ruler": ', '"ruler": 9'))
    with pytest.raises(StepbenchError, match="not comparable: measurement version: 9"):
        against(tmp_path, {CASE: tally([measurement()])})
    path.write_text("{")
    with pytest.raises(StepbenchError, match="cannot be read as baselines"):
        against(tmp_path, {CASE: tally([measurement()])})


def test_accepting_keeps_other_cases_and_other_kinds_of_machine(tmp_path):
    first = stored(tmp_path, counting(flops=1))
    found = {OTHER: tally([measurement()]), CASE: Outcome(kind="oom", reason="too large")}
    path, missing = baselines.accept(tmp_path, MACHINE, found)
    assert path == first
    assert missing == ["gpt-tiny baseline: oom: too large"]
    written = json.loads(path.read_text())
    assert list(written["cases"]) == ["gpt-1m baseline", "gpt-tiny baseline"]
    assert written["cases"]["gpt-tiny baseline"]["counts"]["flops"] == 1
    gpu = {"name": "NVIDIA H200", "capability": "9.0", "memory_bytes": 1, "bf16": True}
    path, _ = baselines.accept(tmp_path, {**MACHINE, "gpus": [gpu]}, found)
    assert "nvidia-h200" in path.name
    assert len(list((tmp_path / baselines.FOLDER).iterdir())) == 2
    with pytest.raises(StepbenchError, match="nothing to accept: gpt-tiny baseline: oom"):
        baselines.accept(tmp_path, MACHINE, {CASE: found[CASE]})


def test_what_was_measured_is_shown_though_a_person_stops_it(project, monkeypatch, machine):
    ok = Outcome(kind="ok")
    result = Gate(
        reference="a",
        candidate="b",
        started_at="2026-01-31T12:00:00+00:00",
        machine=MACHINE,
        torch="2.13.0",
        measure_version=2,
        timed=True,
        cases=(CaseVerdict(case=CASE, reference=ok, candidate=ok),),
    )

    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "run", stopped)
    monkeypatch.setattr(Session, "measured_any", True)
    monkeypatch.setattr(Session, "told", lambda self: result)
    shown = []
    with pytest.raises(KeyboardInterrupt):
        command.compare(asked(project), [CASE], print, shown.append)
    assert shown == [result]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["v9"], "'v9' is no commit"),
        (["HEAD", "--accept"], "name no commit"),
        (["--accept", "--baselines"], "choose one"),
        (["--accept-counters", "--against-accepted"], "choose one"),
        (["--accept-counters", "--baselines"], "choose one"),
        (["HEAD", "--against-accepted"], "name no commit"),
        (["--counters-only", "--plot", "pairs.html"], "--plot shows pairs"),
        (["--time", "off", "--plot", "pairs.html"], "--plot shows pairs"),
        (["--accept", "--minutes", "3"], "measure no time"),
        (["--workload-file", "train.py"], "-w module:attribute"),
        (["--baselines", "--fail-fast"], "measure no time"),
        (["--intended", "speed", "HEAD"], "--intended speed: no such counter; there are operators"),
        (["--accept", "--intended", "loss"], "--intended is for two sides"),
        (["-c", "fp17"], "'fp17' is not a technique"),
        (["--project", "nowhere"], "nowhere is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(project, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["stepbench", "gate", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    [line] = said.err.splitlines()
    assert told in line
    assert said.out == ""

"""The command as a person uses it: tables, JSON, mistakes in one line with exit code 2."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from stepbench.cli.main import stepbench as group
from stepbench.training.techniques import AXES
from tests.command import stepbench


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """A folder in which two combinations were measured, and what the command printed.

    By an interpreter of its own, as a person starts it; what follows are forks of this one.
    """
    folder = tmp_path_factory.mktemp("project")
    quick = ("-w", "gpt-tiny", "-r", "1", "--steps", "3")
    line = [sys.executable, "-m", "stepbench", "run", "bf16", "tf32", *quick]
    return folder, subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)


def test_run_prints_every_case(run_once):
    _, done = run_once
    for row in ("baseline", "bf16", "tf32 "):
        assert any(line.startswith(row) for line in done.stdout.splitlines())
    assert "tf32 needs an NVIDIA GPU" in done.stdout
    assert "bf16: ok, speed-up" in done.stderr


def test_report_prints_the_same_table_again(run_once):
    folder, done = run_once
    assert stepbench("report", cwd=folder).stdout == done.stdout
    [run_file] = (folder / "results").glob("*/*.jsonl")
    assert stepbench("report", str(run_file), cwd=folder).stdout == done.stdout
    assert "| bf16 " in stepbench("report", "--markdown", cwd=folder).stdout


def test_report_as_json(run_once):
    folder, _ = run_once
    [run] = json.loads(stepbench("report", "--json", cwd=folder).stdout)
    rows = {row["combination"]: row for table in run["tables"] for row in table["rows"]}
    assert rows["tf32"]["outcome"]["kind"] == "unsupported"
    assert rows["bf16"]["figures"]["step_s"] > 0


def test_a_format_is_printed_or_written_and_the_old_flags_do_the_same(run_once):
    folder, done = run_once
    written = folder / "table.txt"
    assert stepbench("report", "--output", str(written), cwd=folder).stdout == ""
    assert written.read_text() == done.stdout
    for name in ("json", "markdown"):
        printed = stepbench("report", "--format", name, cwd=folder).stdout
        assert printed == stepbench("report", f"--{name}", cwd=folder).stdout != done.stdout
    assert "--json" not in stepbench("report", "--help", cwd=folder).stdout


def test_the_help_screen_groups_every_verb_and_tells_exit_codes(tmp_path):
    told = stepbench("--help", cwd=tmp_path).stdout
    sections = re.findall(r"^(Measure|Read|Guard|About):\n((?:  .+\n)+)", told, re.MULTILINE)
    verbs = {title: re.findall(r"^  (\S+)", lines, re.MULTILINE) for title, lines in sections}
    assert list(verbs) == ["Measure", "Read", "Guard", "About"]
    assert sorted(name for names in verbs.values() for name in names) == sorted(group.commands)
    assert "--results DIR" in told
    for code in ("0 fine", "1 failed or regressed", "2 a mistake", "3 incomplete", "128+N stopped"):
        assert code in told


def test_report_compares_two_runs(run_once):
    folder, _ = run_once
    [run_file] = (folder / "results").glob("*/*.jsonl")
    arguments = ("report", "--compare", str(run_file), str(run_file.parent))
    compared = json.loads(stepbench(*arguments, "--json", cwd=folder).stdout)
    ratios = [one["figures"]["step_ratio"]["median"] for one in compared["cases"] if one["figures"]]
    assert ratios == [1.0, 1.0]
    assert "  unsupported [" in stepbench(*arguments, cwd=folder).stdout
    assert "| unsupported [" in stepbench(*arguments, "--markdown", cwd=folder).stdout


def test_a_finished_run_is_closed_and_the_next_one_new(run_once):
    folder, _ = run_once
    stepbench("run", "accum2", "-w", "gpt-tiny", "-r", "1", "--steps", "3", cwd=folder)
    assert len(list((folder / "results").glob("*/*.jsonl"))) == 2


def test_time_that_runs_out_is_exit_code_3_and_the_run_goes_on(tmp_path):
    arguments = ("run", "accum2", "-w", "gpt-tiny", "-r", "1", "--steps", "1")
    done = stepbench(*arguments, "--minutes", "0", cwd=tmp_path, code=3)
    assert "run the same command again to go on" in done.stderr
    stepbench(*arguments, cwd=tmp_path)
    [run_file] = (tmp_path / "results").glob("*/*.jsonl")
    assert len(run_file.read_text().splitlines()) > 4


def test_list_and_machine(tmp_path):
    listed = json.loads(stepbench("list", "--json", cwd=tmp_path).stdout)
    reasons = {row["technique"]: row["not here because"] for row in listed["techniques"]}
    assert reasons["bf16"] is None
    assert "NVIDIA GPU" in reasons["tf32"]
    missing = "torchao is not installed: pip install 'stepbench[torchao]'"
    assert reasons["adam8bit"] == (None if importlib.util.find_spec("torchao") else missing)
    assert {row["axis"] for row in listed["techniques"]} == {axis.name for axis in AXES}
    assert "gpt-1m" in listed["workloads"]
    described = json.loads(stepbench("machine", "--json", cwd=tmp_path).stdout)
    assert described["cores"] >= 1
    assert "bf16" in stepbench("list", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "fp17"], "'fp17' is not a technique"),
        (["run", "bf16+fp16"], "both on the axis precision"),
        (["run", "accum3"], "does not divide gpt-1m's global batch of 8"),
        (["run", "--vary", "precision,bf16"], "'precision' is not a technique"),
        (["run", "-w", "gpt-2t"], "'gpt-2t' is not a workload"),
        (["run", "-w", "gpt-1m@batch=0"], "must be at least 1"),
        (["run", "-r", "0"], "rounds=0"),
        (["run", "--threads", "0"], "--threads 0: there are "),
        (["run", "--threads", "4096"], "--threads 4096: there are "),
        (["run", "--threads", "two"], "'two' is not a valid integer"),
        (
            ["run", "bf16+threads1", "--threads", "2"],
            "--threads 2: threads1 is the baseline, which runs on",
        ),
        (["run", "--steps", "0"], "at least 1 round and 1 step"),
        (["run", "-r", "many"], "'many' is not a valid integer"),
        (["run", "--minutes", "nan"], "--minutes"),
        (["run", "--results", "file.txt/x"], "cannot be written"),
        (["report", "nowhere"], "No such file"),
        (["report", "file.txt"], "not the header of a run"),
        (["report", "."], "no readable run"),
        (["report", "--compare", "torch=9", "torch=10"], "torch=9: no such run in results"),
        (["report", "--compare", ".", "."], "no such run in ."),
        (["report", "--compare", "a", "b", "--all"], "choose one of them"),
        (["report", "--compare", "a", "b", "--columns", "flops"], "leave --columns out"),
        (["report", "--columns", "flop"], "'flop' is not a metric; there are"),
        (["report", "--compare", "a"], "requires 2 arguments"),
        (["report", "--json", "--format", "markdown"], "one format at a time, not json and"),
        (["machine", "--output", "file.txt/x"], "file.txt/x: cannot be written"),
        (["init"], "not a repository's top folder"),
        (["fly"], "No such command"),
        (["report", "--colour"], "No such option"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, told):
    (tmp_path / "file.txt").write_text("not a run\n")
    done = stepbench(*arguments, cwd=tmp_path, code=2)
    [line] = done.stderr.splitlines()
    assert line.startswith("stepbench: ")
    assert told in line
    assert done.stdout == ""
    assert not (tmp_path / "results").exists()


def test_reading_never_loads_torch(run_once):
    folder, _ = run_once
    program = (
        "import sys; from stepbench.cli import main as cli;"
        "cli.stepbench(['report'], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, capture_output=True)


def test_ranks_and_weak_scaling(tmp_path):
    quick = ("-w", "gpt-tiny", "-r", "1", "--steps", "3", "--ranks", "1,2")
    told = stepbench("run", "ddp", *quick, cwd=tmp_path).stdout
    assert "\nddp on 2 ranks " in told
    assert "1 all-reduce 0.128" in told
    weak = stepbench("run", "ddp", "--weak", *quick, "--json", cwd=tmp_path).stdout
    [table] = json.loads(weak)["tables"]
    names = [row["combination"] for row in table["rows"]]
    assert names[-1] == "ddp on 2 ranks, global batch x2"
    assert table["rows"][-1]["figures"]["loss_difference"] is None
    assert table["rows"][-1]["figures"]["ranks"]["collectives"] == {"all_reduce": [1, 133760]}


@pytest.mark.parametrize("ranks", ["0", "two", "1,", "-1", ""])
def test_a_wrong_number_of_ranks_is_one_line(tmp_path, ranks):
    told = stepbench("run", "ddp", "--ranks", ranks, cwd=tmp_path, code=2).stderr
    assert told.startswith(f"stepbench: --ranks {ranks}: numbers from 1 on")

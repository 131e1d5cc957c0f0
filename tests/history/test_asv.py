"""ASV itself, on toy repositories: what its commands do with our environment and benchmarks."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asv.graph import Graph

from stepbench.errors import StepbenchError
from stepbench.history.publish import exact, publish
from stepbench.versions import MEASURE_VERSION
from tests.history.conftest import Toy, stored

SUBJECT = "harness/stepbench/training/subject.py"
SLOWED = {SUBJECT: ('"bf16": 0.010', '"bf16": 0.012')}
BF16 = r"precision.*\('bf16'\)"
BF16_STEP = r"precision.*step_s\('bf16'\)"


def combinations(toy: Toy) -> list[str]:
    return [line.split()[2] for line in toy.measured()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_range_of_commits_is_measured_each_by_its_own_code(toy: Toy) -> None:
    first = toy.git("rev-parse", "HEAD")
    second = toy.commit("slower", SLOWED)
    toy.asv("run", "-b", BF16, "HEAD~1..HEAD")
    toy.asv("run", "-b", BF16, "HEAD~1^!")

    step_s = "precision.Precision.measure_step_s"
    assert stored(toy, first, step_s)["result"][3] == pytest.approx(0.010, rel=0.02)
    assert stored(toy, second, step_s)["result"][3] == pytest.approx(0.012, rel=0.02)
    assert {line.split()[0] for line in toy.measured()} == {first[:8], second[:8]}
    # Not the working tree, whose folder this is.
    assert {Path(line.split()[1]).parent.parent for line in toy.measured()} == {
        toy.folder / ".asv/env"
    }
    assert {file.run.commit for file in toy.runs()} == {first, second}


def test_one_measurement_feeds_all_metrics_and_all_classes(toy: Toy) -> None:
    toy.asv("run", "-b", r"(precision|accumulation).*\('(fp32|bf16|accum1|accum2)'\)")
    assert sorted(combinations(toy)) == ["accum2", "baseline", "bf16"]
    (run,) = toy.runs()
    assert len(run.records) == 3
    assert run.closed


def test_parameters_select_cases(toy: Toy) -> None:
    toy.asv("run", "-b", r"product\..*step_s\('bf16', 'accum2', 'ckpt1'\)")
    assert combinations(toy) == ["bf16+accum2+ckpt1"]


def test_the_full_product_runs_only_when_named(toy: Toy) -> None:
    only_there = "bf16+accum8+ckpt3"
    toy.asv("run", code=2)  # fp16 fails in the toy
    assert len(combinations(toy)) == len(set(combinations(toy))) == 30
    toy.asv("run", "-b", r"step_s\('bf16'(, 'accum8', 'ckpt3')?\)", "-b", "^nothing")
    assert only_there not in combinations(toy)
    toy.asv("run", "-b", r"product_full.*step_s\('bf16', 'accum8', 'ckpt3'\)")
    assert combinations(toy)[-1] == only_there


def test_step_times_are_samples_with_statistics_the_rest_plain_numbers(toy: Toy) -> None:
    toy.asv("run", "-b", BF16, "-a", "repeat=8", "--record-samples")
    commit = toy.git("rev-parse", "HEAD")
    times = stored(toy, commit, "precision.Precision.measure_step_s")
    assert len(times["samples"][3]) == times["stats_repeat"][3] == 8
    assert times["stats_ci_99_a"][3] < times["result"][3] < times["stats_ci_99_b"][3]
    for name, value in {
        "peak_bytes": 100_000_000,
        "saved_bytes": 2**20,
        "flops": 1000,
        "operators": 10,
    }.items():
        saved = stored(toy, commit, f"precision.Precision.measure_{name}")
        assert saved["result"][3] == value
        assert saved.get("stats_repeat") is None


def test_rounds_come_from_quick_and_repeat(toy: Toy) -> None:
    toy.asv("run", "-b", BF16_STEP)
    toy.asv("run", "-b", BF16_STEP, "--quick")
    toy.asv("run", "-b", BF16_STEP, "-a", "repeat=5", "-a", "rounds=1")
    assert [line.split()[3] for line in toy.measured()] == ["2", "1", "5"]
    said = toy.asv("run", "-b", BF16_STEP, "-a", "rounds=3", code=1)
    assert "ask for more rounds by -a repeat=3" in said
    assert "Traceback" not in said


def test_unsupported_is_nan_and_failed_is_null_each_with_its_reason(toy: Toy) -> None:
    said = toy.asv("run", "-b", r"precision.*step_s", "--show-stderr", code=2)
    values = stored(toy, toy.git("rev-parse", "HEAD"), "precision.Precision.measure_step_s")
    fp32, tf32, fp16, bf16 = values["result"]
    assert fp32 > bf16
    assert math.isnan(tf32)
    assert fp16 is None
    assert "gpt-1m tf32: unsupported: this CPU has no TF32" in said
    assert "gpt-1m fp16: failed: the process was killed by SIGKILL" in said
    assert "Traceback (most recent call last)" not in said


def test_compare_and_show_tell_a_step_slowed_by_a_fifth(toy: Toy) -> None:
    eight = ("-a", "repeat=8", "--record-samples")
    before = toy.git("rev-parse", "HEAD")
    after = toy.commit("slower", SLOWED)
    toy.asv("run", "-b", "precision.*(fp32|bf16)", *eight, "HEAD~1^!")
    toy.asv("run", "-b", "precision.*(fp32|bf16)", *eight, "HEAD^!")
    table = toy.asv("compare", before, after)
    marked = [line for line in table.splitlines() if line.startswith(("| +", "| -"))]
    assert len(marked) == 1
    assert float(marked[0].split("|")[4]) == pytest.approx(1.2, rel=0.02)
    assert "measure_step_s('bf16')" in marked[0]
    assert "measure_step_s" in toy.asv("show", after)


def test_continuous_compares_a_commit_with_its_parent(toy: Toy) -> None:
    toy.commit("slower", SLOWED)
    said = toy.asv("continuous", "-b", BF16_STEP, "-a", "repeat=8", "HEAD", code=1)
    assert "PERFORMANCE DECREASED" in said


def test_find_bisects(toy: Toy) -> None:
    for number in range(3):
        toy.commit(f"nothing {number}")
    slower = toy.commit("slower", {SUBJECT: ('"baseline": 0.020', '"baseline": 0.024')})
    toy.commit("nothing more")
    name = "accumulation.Accumulation.measure_step_s"
    said = toy.asv("find", "HEAD~5..HEAD", name, "--launch-method", "forkserver")
    assert slower[:8] in said.splitlines()[-1]


def test_a_wrong_key_is_one_line(toy: Toy) -> None:
    path = toy.folder / "asv.conf.json"
    right = path.read_text()
    path.write_text(right.replace('"on_request"', '"on_requests"'))
    said = toy.asv("run", "-b", BF16, code=1)
    assert "asv.conf.json: no key is called 'on_requests'" in said
    assert "Traceback" not in said
    path.write_text(right)
    (toy.home / ".asv-machine.json").write_text('{"version": 1, "here": ')
    said = toy.asv("run", "-b", BF16, code=1)
    assert ".asv-machine.json: UserError: Error parsing JSON" in said
    assert "Traceback" not in said


def test_an_interrupted_run_goes_on_where_it_stopped(toy: Toy) -> None:
    selected = ("-b", r"accumulation.*step_s")
    process = toy.start("run", *selected, STEPBENCH_TOY_WAIT_S="2")
    wait_for(lambda: len(toy.measured()) == 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 1
    (run,) = toy.runs()
    assert not run.closed
    assert [str(record.case.combination) for record in run.records] == ["baseline"]

    toy.asv("run", *selected)
    assert combinations(toy) == ["baseline", "accum2", "accum2", "accum4", "accum8"]
    (run,) = toy.runs()
    assert run.closed
    toy.asv("run", *selected)  # nothing was left to go on with
    assert len(combinations(toy)) == 9


def test_a_killed_asv_loses_only_the_running_case(toy: Toy) -> None:
    selected = ("-b", r"accumulation.*step_s\('accum[12]'\)")
    process = toy.start("run", *selected, STEPBENCH_TOY_WAIT_S="2")
    wait_for(lambda: len(toy.measured()) == 2)
    process.kill()
    process.wait(timeout=120)
    (run,) = toy.runs()
    assert not run.closed
    assert len(run.records) == 1


def test_a_commit_with_another_ruler_is_skipped(toy: Toy) -> None:
    old = toy.git("rev-parse", "HEAD")
    changed = (
        f"MEASURE_VERSION = {MEASURE_VERSION}\n",
        f"MEASURE_VERSION = {MEASURE_VERSION + 1}\n",
    )
    toy.commit("another ruler", {"harness/stepbench/versions.py": changed})
    said = toy.asv("run", "-b", BF16, "HEAD~1^!", "--show-stderr")
    assert f"commit {old[:8]} is skipped" in said
    assert f"MEASURE_VERSION {MEASURE_VERSION + 1}" in said
    assert toy.measured() == []
    assert math.isnan(stored(toy, old, "precision.Precision.measure_step_s")["result"][3])


@pytest.mark.parametrize(
    ("lacking", "why"),
    [
        ("harness/stepbench/history", "it has no harness/stepbench/history/suite.py"),
        ("harness", "it has no harness/stepbench/history/suite.py"),
    ],
)
def test_a_commit_from_before_the_suite_is_skipped(toy: Toy, lacking: str, why: str) -> None:
    toy.git("rm", "-q", "-r", "--cached", lacking)
    old = toy.commit_index("before the suite")
    toy.commit("the suite")
    said = toy.asv("run", "-b", BF16, "HEAD~1^!")
    assert f"commit {old[:8]} is skipped: {why}" in said
    assert toy.measured() == []


def test_a_technique_that_a_commit_lacks_is_skipped(toy: Toy) -> None:
    path = toy.folder / "benchmarks/precision.py"
    path.write_text(path.read_text().replace('"bf16"]', '"bf16", "int3"]'))
    toy.asv("run", "-b", r"precision.*step_s\('(bf16|int3)'\)")
    assert combinations(toy) == ["bf16"]


def test_uncommitted_edits_are_pointed_out_and_results_are_none(toy: Toy) -> None:
    warning = "uncommitted edits are not measured"
    toy.asv("run", "-b", BF16_STEP)
    assert toy.git("status", "--porcelain") == "?? results/"
    assert warning not in toy.asv("run", "-b", BF16_STEP)
    with (toy.folder / SUBJECT).open("a") as out:
        out.write("STEP_S['bf16'] = 9\n")
    (toy.folder / "notes.txt").write_text("new")
    said = toy.asv("run", "-b", BF16_STEP)
    assert said.count(warning) == 1
    assert f"{SUBJECT} and 1 more" in said
    commit = toy.git("rev-parse", "HEAD")
    step_s = stored(toy, commit, "precision.Precision.measure_step_s")["result"][3]
    assert step_s == pytest.approx(0.010, rel=0.02)


def test_the_machine_is_known_without_questions_or_host_name(toy: Toy) -> None:
    machines = toy.home / ".asv-machine.json"
    other = {"elsewhere": {"machine": "elsewhere", "ram": "1 GiB"}, "version": 1}
    machines.write_text(json.dumps(other))
    toy.asv("run", "-b", BF16_STEP)
    entries = json.loads(machines.read_text())
    assert entries["elsewhere"] == other["elsewhere"]
    entry = entries["test-cpu-2-cores"]
    assert entry["gpu"] == "none"
    assert os.uname().nodename not in entry.values()
    saved = stored_file(toy)
    assert saved["params"]["gpu"] == "none"
    assert saved["requirements"]["torch"] == saved["params"]["torch"]


def stored_file(toy: Toy) -> dict[str, Any]:
    (path,) = (toy.folder / "results").glob("*/*-checkout-*.json")
    return dict(json.loads(path.read_text()))


def test_what_the_environment_cannot_do_is_refused_in_a_line(toy: Toy) -> None:
    said = toy.asv("run", "-E", "checkout:2.7", code=1)
    assert 'the environment "checkout" runs Python' in said
    config = toy.folder / "asv.conf.json"
    config.write_text(
        config.read_text().replace('"version": 1', '"version": 1, "matrix": {"six": []}')
    )
    assert "installs nothing" in toy.asv("run", code=1)


def test_publish_lists_the_regression_and_works_offline(toy: Toy) -> None:
    for number in range(4):
        toy.commit(f"fast {number}")
    slower = toy.commit("slower", SLOWED)
    for number in range(4):
        toy.commit(f"slow {number}")
    with pytest.raises(StepbenchError, match=r"asv publish failed: .*just-discover"):
        publish(toy.folder)
    toy.asv("run", "-b", r"precision.*step_s\('(fp32|bf16)'\)", "ALL")
    html = publish(toy.folder)

    (regression,) = json.loads((html / "regressions.json").read_text())["regressions"]
    name, *_, jumps = regression
    assert name == "precision.Precision.measure_step_s('bf16')"
    revisions = json.loads((html / "index.json").read_text())["revision_to_hash"]
    assert revisions[str(jumps[0][1])] == slower
    shell = (html / "index.html").read_text()
    assert "http" not in shell
    assert 'href="techniques/techniques.html"' in shell
    assert (html / "techniques/techniques.html").is_file()


def test_one_operator_more_in_a_thousand_is_pinned_on_its_commit(toy: Toy) -> None:
    many = toy.commit("many", {SUBJECT: ("OPERATORS = 10\n", "OPERATORS = 1000\n")})
    for number in range(2):
        toy.commit(f"nothing {number}")
    more = toy.commit("one more", {SUBJECT: ("OPERATORS = 1000", "OPERATORS = 1001")})
    for number in range(2):
        toy.commit(f"nothing more {number}")
    toy.asv("run", "--quick", "-b", r"precision.*operators\('fp32'\)", "ALL")
    html = publish(toy.folder)
    [found] = json.loads((html / "regressions.json").read_text())["regressions"]
    revisions = json.loads((html / "index.json").read_text())["revision_to_hash"]
    assert [(revisions[str(at)], old, new) for _, at, old, new in found[-1]] == [
        (many, 10, 1000),
        (more, 1000, 1001),
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("measure_operators", [(0, 5, 1000.0), (5, 10, 1001.0)]),
        ("measure_step_s", [(0, 10, 1000.5)]),  # what scatters is ASV's to judge
    ],
)
def test_every_change_of_a_count_is_a_step(name: str, found: list[Any]) -> None:
    graph = Graph(f"precision.Precision.{name}", {})
    for revision in range(10):
        graph.add_data_point(revision, [1000.0 if revision < 5 else 1001.0])
    exact(Graph.detect_steps)(graph)
    assert [step[:3] for step in graph.get_steps()[0]] == found


def test_publish_needs_a_project(tmp_path: Path) -> None:
    with pytest.raises(StepbenchError, match=r"asv.conf.json does not exist"):
        publish(tmp_path)

"""Two runs side by side: the numbers by hand, and every key that forbids it named."""

import json
from dataclasses import replace

import pytest

from stepbench.errors import StepbenchError
from stepbench.metrics.memory import PEAK_BYTES
from stepbench.metrics.time import STEP_S
from stepbench.records.outcome import Outcome
from stepbench.report import side_by_side
from stepbench.report.compare import compare, select
from stepbench.store import RunFile
from stepbench.versions import MEASURE_VERSION
from tests.synthetic import MACHINE, MIB, OK, case, measurement, record, run, run_file

BASE = measurement()
OTHER_MACHINE = MACHINE | {"name": "other-cpu-4-cores", "cpu": "Other CPU"}
OTHER_TORCH = {"torch": "2.12.0+cpu", "stepbench_digest": "0"}
OOM = Outcome(kind="oom", phase="backward", reason="2 GiB asked for")


def of(*processes, header=None, name="bf16", outcome=OK):
    """A run that holds one case, a process a round."""
    pairs = [(process, BASE) for process in processes]
    return run_file([record(case(name), pairs, outcome=outcome)], header)


def in_environment(**keys):
    return replace(BASE, environment={"torch": "2.13.0+cpu", "threads": 1, "device": "cpu", **keys})


def test_new_over_old_by_case():
    old = of(measurement([0.2], peak_bytes=50 * MIB), measurement([0.2], peak_bytes=50 * MIB))
    new = of(measurement([0.1], peak_bytes=75 * MIB), measurement([0.1], peak_bytes=75 * MIB))
    (pair,) = compare(old, new).pairs
    assert pair.changes[STEP_S].ratio.median == 0.5
    assert pair.changes[STEP_S].ratio.low is None
    assert pair.changes[PEAK_BYTES].ratio.median == 1.5
    lines = side_by_side.terminal(compare(old, new)).splitlines()
    (row,) = [line for line in lines if line.startswith(str(pair.case))]
    cells = row.removeprefix(str(pair.case)).split()
    assert cells == ["ok", "200", "100", "~0.50x", "50.0", "75.0", "~1.50x"]


def test_the_interval_stands_from_6_rounds_a_side_on():
    six, five = ([measurement([0.1])] * count for count in (6, 5))
    assert compare(of(*six), of(*six)).pairs[0].changes[STEP_S].ratio.low == 1.0
    assert compare(of(*six), of(*five)).pairs[0].changes[STEP_S].ratio.low is None


def test_what_is_in_one_run_only_is_listed():
    both = record(case("bf16"), [(BASE, BASE)])
    old = run_file([both, record(case("accum2"), [(BASE, BASE)])])
    new = run_file([both, record(case("ckpt1"), outcome=OOM)])
    text = side_by_side.terminal(compare(old, new))
    assert f"only in the old run: {case('accum2')}" in text
    assert f"only in the new run: {case('ckpt1')}" in text


def test_an_outcome_that_changed_is_shown_with_its_reason():
    old, new = of(BASE), of(outcome=OOM)
    comparison = compare(old, new)
    assert comparison.pairs[0].changes is None
    text = side_by_side.terminal(comparison)
    assert "ok -> oom [1]" in text
    assert "[1] 2 GiB asked for" in text


def test_no_case_in_common_is_told():
    with pytest.raises(StepbenchError, match=r"no case in common: .* bf16 against .* ckpt1"):
        compare(of(BASE), of(BASE, name="ckpt1"))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"machine": OTHER_MACHINE}, "machine"),
        ({"software": OTHER_TORCH}, "torch"),
        ({"commit": "fedcba"}, "commit"),
        ({"edited": True}, "commit"),
        ({}, None),
    ],
)
def test_one_kind_may_differ(change, kind):
    comparison = compare(of(BASE), of(BASE, header=run(**change)))
    assert list(comparison.differs) == ([kind] if kind else [])
    assert comparison.pairs[0].changes is not None


def test_two_kinds_are_refused_unless_both_were_named():
    old, new = of(BASE), of(BASE, header=run(machine=OTHER_MACHINE, commit="fedcba"))
    with pytest.raises(StepbenchError) as refused:
        compare(old, new)
    assert str(refused.value) == (
        "not comparable: machine: cpu: Test CPU against Other CPU; commit: commit 0123456789 "
        "against commit fedcba; choose runs alike in machine or commit, or compare both at once "
        "by naming both runs as commit=…,machine=…"
    )
    with pytest.raises(StepbenchError, match="comparable: commit: commit 0123456789 against"):
        compare(old, new, frozenset({"machine"}))
    assert set(compare(old, new, frozenset({"machine", "commit"})).differs) == {"machine", "commit"}


def test_only_what_was_named_may_differ():
    with pytest.raises(StepbenchError, match=r"^not comparable: commit: .* choose runs alike in c"):
        compare(of(BASE), of(BASE, header=run(commit="fedcba")), frozenset({"torch"}))


def test_another_build_of_a_torch_belongs_to_another_machine():
    build = {"torch": "2.13.0+cu130", "stepbench_digest": "0"}
    there = run(machine=OTHER_MACHINE, software=build)
    assert list(compare(of(BASE), of(BASE, header=there)).differs) == ["machine"]
    assert list(compare(of(BASE), of(BASE, header=run(software=build))).differs) == ["torch"]


def test_another_ruler_is_always_refused():
    other = run(measure_version=MEASURE_VERSION + 1)
    every = frozenset({"machine", "torch", "commit"})
    with pytest.raises(StepbenchError, match=f"version: {MEASURE_VERSION} against"):
        compare(of(BASE), of(BASE, header=other), every)


@pytest.mark.parametrize("key", ["data_digest", "allocator", "threads"])
@pytest.mark.parametrize("change", [{"machine": OTHER_MACHINE}, {"commit": "fedcba"}])
def test_other_work_is_refused_whatever_is_compared(key, change):
    old, new = of(in_environment(**{key: 1})), of(in_environment(**{key: 2}), header=run(**change))
    with pytest.raises(StepbenchError, match=f"^not comparable: {key}: 1 against 2$"):
        compare(old, new)


@pytest.mark.parametrize(
    ("key", "allowing"),
    [
        ("python", {"software": OTHER_TORCH}),
        ("cuda", {"machine": OTHER_MACHINE}),
        ("workload_digest", {"commit": "fedcba"}),
    ],
)
def test_what_belongs_to_the_compared_thing_may_differ_with_it_only(key, allowing):
    old, new = of(in_environment(**{key: "a"})), of(in_environment(**{key: "b"}))
    with pytest.raises(StepbenchError, match=f"^not comparable: {key}: a against b$"):
        compare(old, new)
    comparison = compare(old, replace(new, run=run(**allowing)))
    assert comparison.pairs[0].changes is not None
    told = key != "workload_digest"
    assert (f"with it: {key}: a against b" in side_by_side.terminal(comparison)) == told


def test_a_gpus_host_may_have_other_threads():
    old, new = (of(in_environment(device="H200", threads=count)) for count in (16, 32))
    assert compare(old, new).pairs[0].changes is not None


def test_one_refused_case_leaves_the_others():
    fine = record(case("bf16"), [(BASE, BASE)])
    sides = [
        run_file([fine, record(case("ckpt1"), [(in_environment(data_digest=digest), BASE)])])
        for digest in ("a", "b")
    ]
    text = side_by_side.terminal(compare(*sides))
    assert "[1] data_digest: a against b" in text
    assert "1.00x" in text


def test_peaks_that_were_read_by_unlike_methods_have_no_ratio():
    other = replace(BASE, memory=replace(BASE.memory, method="CUDA caching allocator"))
    comparison = compare(of(BASE), of(other))
    assert comparison.pairs[0].changes[PEAK_BYTES].ratio is None
    assert comparison.pairs[0].changes[STEP_S].ratio.median == 1.0
    assert "memory: test tensors against CUDA caching" in side_by_side.markdown(comparison)


def test_disturbed_rounds_widen_the_interval_and_are_told():
    quiet = [measurement([0.1 + 0.01 * number]) for number in range(8)]
    times = [[0.1 + 0.01 * number] for number in range(8)]
    loud = [measurement(one, disturbances=["steal"] if one[0] > 0.14 else []) for one in times]
    calm, wide = (compare(of(*quiet), of(*side)).pairs[0] for side in (quiet, loud))
    assert wide.changes[STEP_S].ratio.high > calm.changes[STEP_S].ratio.high
    assert wide.notes == ("disturbed: steal",)


def test_json_is_in_base_units_and_markup_is_harmless():
    old = of(measurement([0.2]))
    new = of(measurement([0.1]), header=run(commit="<b>|\x1b[2J"))
    told = json.loads(json.dumps(side_by_side.as_json(compare(old, new))))
    assert told["cases"][0]["figures"]["step_ratio"]["median"] == 0.5
    assert list(told["differs"]) == ["commit"]
    assert "\x1b" not in side_by_side.terminal(compare(old, new))
    assert "<b>" not in side_by_side.markdown(compare(old, new)).replace("\\<b\\>", "")


@pytest.fixture
def stored(tmp_path):
    headers = [
        run("20260101T000000Z-aaaaaa", software=OTHER_TORCH),
        run("20260102T000000Z-bbbbbb", started_at="2026-02-01T12:00:00+00:00"),
        run("20260103T000000Z-cccccc", commit="fedcba"),
        run("20260104T000000Z-dddddd", machine=OTHER_MACHINE),
    ]
    for header in headers:
        RunFile.create(tmp_path, header)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found", "keys"),
    [
        ("torch=2.12", "a", {"torch"}),
        ("torch=2.12.0+cpu", "a", {"torch"}),
        ("commit=fed", "c", {"commit"}),
        ("machine=other", "d", {"machine"}),
        ("machine=test,torch=2.13.0,commit=0123", "b", {"machine", "torch", "commit"}),
    ],
)
def test_the_newest_run_of_a_selector(stored, text, found, keys):
    file, named = select(stored, text)
    assert file.run.id.endswith(found * 6)
    assert named == keys


def test_files_and_folders_name_no_key(stored):
    folder = stored / MACHINE["name"]
    newest, keys = select(stored, str(folder))
    assert (newest.run.id[-1], keys) == ("b", frozenset())  # by the time it started
    file = folder / "20260101T000000Z-aaaaaa.jsonl"
    assert select(stored, str(file))[0].path == file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("torch=2.1", "torch=2.1: no such run in"),
        ("colour=blue", "selected by machine=…, torch=…, commit=…"),
        ("torch=", "selected by machine=…, torch=…, commit=…"),
        ("fedcba", "'fedcba' is neither a run's file, a folder of runs nor machine=…"),
        ("torch=2", "torch may be 2.12.0+cpu or 2.13.0+cpu; write more of it"),
    ],
)
def test_a_mistaken_selector_is_one_clear_line(stored, text, told):
    with pytest.raises(StepbenchError, match=r"^[^\n]+$") as error:
        select(stored, text)
    assert told in str(error.value)

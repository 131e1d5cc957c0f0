"""Files of every measurement version that was ever committed are read, for ever and as a whole.

Each file in `committed/` holds lines of a run in this repository's results: a technique that was
measured, one on ranks, one that was unsupported. All rounds but the first were taken out of them.
"""

import json
from pathlib import Path

import pytest

from stepbench.metrics.beside import SPEEDUP
from stepbench.records.measurement import Counters
from stepbench.report import tables
from stepbench.store import RunFile
from stepbench.versions import MEASURE_VERSION, RECORD_VERSION

FILES = sorted((Path(__file__).parent / "committed").glob("*.jsonl"))


def lost(old, new, where=""):
    """Where a file's JSON has a value that what was read from it does not have."""
    if isinstance(old, dict):
        for key, value in old.items():
            if key in Counters.RETIRED:
                continue
            there = isinstance(new, dict) and key in new
            yield from lost(value, new[key], f"{where}.{key}") if there else [f"{where}.{key}"]
    elif isinstance(old, list):
        if not isinstance(new, list | tuple) or len(old) != len(new):
            yield where
            return
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from lost(one, other, f"{where}[{index}]")
    elif old != new and not (old != old and new != new):  # NaN differs from itself
        yield where


def test_there_is_a_file_of_each_version():
    assert [path.name for path in FILES] == [
        f"measurement-{version}.jsonl" for version in range(1, MEASURE_VERSION + 1)
    ]
    headers = [json.loads(path.read_text().partition("\n")[0]) for path in FILES]
    assert {one["store_version"] for one in headers} == set(range(1, RECORD_VERSION + 1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_value_is_lost_and_no_key_renamed(path):
    file, problems = RunFile.read(path)
    assert problems == []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert file.closed
    read = {
        "run": [file.run.to_json()],
        "calibration": [one.to_json() for one in file.calibrations],
        "record": [one.to_json() for one in file.records],
    }
    for kind, values in read.items():
        stored = [line[kind] for line in lines if line["kind"] == kind]
        assert stored
        assert list(lost(stored, values)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_ratio_is_by_hand_and_its_table_is_printed(path):
    """One round: the ratio of two means over the timed steps, or over their whole periods."""
    file, _ = RunFile.read(path)
    told = tables.terminal(file)
    for record in file.records:
        assert str(record.case.combination) in told
        if record.outcome.ok:
            (one,) = record.rounds
            means = [sum(side.step_s) / len(side.step_s) for side in (one.baseline, one.case)]
            assert SPEEDUP.of(record).median == pytest.approx(means[0] / means[1], rel=1e-3)


def test_a_lost_value_is_found():
    old = {"a": [1, {"b": None}], "c": 2.0}
    assert list(lost(old, {"a": (1, {"b": None, "new": 3}), "c": 2})) == []
    assert list(lost(old, {"a": [1, {}], "c": 3})) == [".a[1].b", ".c"]
    assert list(lost(old, {"a": [1]})) == [".a", ".c"]

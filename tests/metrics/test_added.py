"""A metric and its column, added from outside the package: in table, Markdown, JSON and page."""

import json
from dataclasses import replace

import pytest

from stepbench import Column, Metric, StepbenchError
from stepbench.report import page, tables
from stepbench.report.columns import COLUMNS, with_requested
from tests.synthetic import case, measurement, record, run_file

BUILD_S = Metric(
    key="build_s",
    unit="seconds",
    better="lower",
    about="Making model, optimizer and loader.",
    read=lambda process: process.build_s or None,
)
MINE = Column(metric=BUILD_S, header="build ms", legend="build: what comes before the first step.")


def built_in(*seconds):
    pairs = [(replace(measurement(), build_s=each), measurement()) for each in seconds]
    return run_file([record(case("bf16"), pairs)])


def test_it_stands_in_every_output(tmp_path):
    file, columns = built_in(0.2, 0.3, 0.7), (*COLUMNS, MINE)
    header, _, baseline, row = tables.terminal(file, columns).split("\n\n")[1].splitlines()
    assert header.endswith("build ms")
    assert (baseline.split()[-1], row.split()[-1]) == ("500", "300")
    assert MINE.legend in tables.terminal(file, columns)
    assert "build ms" in tables.markdown(file, columns)
    decoded = json.loads(json.dumps(tables.as_json(file, columns)))
    figures = [one["figures"]["build_s"] for one in decoded["tables"][0]["rows"]]
    assert figures == [0.5, 0.3]
    written = page.write([file], tmp_path, columns=columns).read_text(encoding="utf-8")
    assert "build ms" in written
    assert MINE.legend in written


def test_what_was_not_observed_is_absent_and_never_0():
    file = built_in(0.2, 0.0)
    (_, row) = tables.as_json(file, (*COLUMNS, MINE))["tables"][0]["rows"]
    assert row["figures"]["build_s"] is None
    assert (
        tables.terminal(file, (*COLUMNS, MINE)).split("\n\n")[1].splitlines()[-1].split()[-1]
        == "10,000"
    )


def test_nothing_is_changed_for_those_who_did_not_ask():
    assert "build" not in tables.terminal(built_in(0.2))


def test_a_key_that_is_taken_is_refused():
    taken = replace(MINE, metric=replace(BUILD_S, key="step_s"))
    with pytest.raises(ValueError, match="'step_s'"):
        tables.as_json(built_in(0.2), (*COLUMNS, taken))


def test_asv_tracks_only_what_is_worse_when_it_is_larger():
    with pytest.raises(ValueError, match="lower"):
        replace(BUILD_S, better="higher", asv="largest")


def test_a_person_requests_any_metric_by_its_key():
    file = run_file([record(case("bf16"), [(measurement(), measurement())])])
    columns = with_requested(["saved_bytes", "trained_share", "exposed_share"])
    header, _, *rows = tables.terminal(file, columns).split("\n\n")[1].splitlines()
    assert header.split("  ")[-1].strip() == "exposed"
    assert "saved MiB" in header
    assert "trained" in header  # it is the same in all rows, and shown all the same
    assert [row.split()[-1] for row in rows] == ["1.00", "1.00"]  # bytes; the rest is not told
    (_, bf16) = tables.as_json(file, columns)["tables"][0]["rows"]
    assert bf16["figures"]["saved_bytes"] == 2**20
    with pytest.raises(StepbenchError, match="'saved' is not a metric; there are batches_ahead,"):
        with_requested(["saved"])

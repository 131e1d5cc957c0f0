"""The gate's result in each of its outputs, from data made by hand."""

import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

from stepbench.records.outcome import Outcome
from stepbench.records.pair import Block, Pair
from stepbench.records.verdict import (
    CaseVerdict,
    Difference,
    Gate,
    MeasuredPair,
    Pin,
    TimeVerdict,
    Weighed,
)
from stepbench.report import gate_tables, pair_plot
from tests.synthetic import MACHINE, MIB, OK, case

CROWD = ("other processes left too few processors",)


def measured(stage="screen", slower=0.05, disturbances=()):
    new = (Block(step_s=(math.exp(slower),), cpu_s=(math.exp(slower),)),)
    pair = Pair(
        method="ping-pong",
        order="reference first",
        device="cpu",
        reference=(Block(step_s=(1.0,), cpu_s=(1.0,)),),
        candidate=new,
        stolen_share=0.0,
        foreign_cores=0.0,
        disturbances=disturbances,
    )
    return MeasuredPair(stage=stage, pair=pair)


def weighed(stage, figure="cpu_total"):
    return Weighed(
        stage=stage,
        figure=figure,
        pairs=20,
        estimate=0.05,
        error=0.002,
        p_slower=0.0001,
        p_faster=0.9999,
    )


SLOWER = TimeVerdict(
    verdict="regression",
    method="ping-pong",
    figure="cpu_total",
    estimate=math.log(1.048),
    p=0.0002,
    minimum_effect=0.02,
    smallest_seen=None,
    weighed=(weighed("measure"), weighed("measure", "wall_total"), weighed("confirm")),
    pairs=(measured(), measured(disturbances=CROWD), measured("measure"), measured("confirm")),
)
QUIET = TimeVerdict(
    verdict="none",
    method="ping-pong",
    figure="cpu_total",
    estimate=0.001,
    p=None,
    minimum_effect=0.02,
    smallest_seen=math.log(1.021),
    weighed=(weighed("screen"), weighed("screen", "wall_total")),
    pairs=(measured(slower=0.001),),
)
HEAVIER = (
    Difference(
        figure="operators",
        change="worse",
        unit="count",
        old=1000,
        new=1001,
        detail=("aten.mm: 10 -> 11 (+1)",),
    ),
    Difference(
        figure="steady_peak", change="better", unit="bytes", old=3 * MIB, new=2 * MIB, detail=()
    ),
)
UNLIKE = "torch: 1 against 2"
SICK = Outcome(kind="failed", reason="evil \x1b[31m|<b>", phase="forward")


def gate(**changes):
    fields = {
        "reference": "commit 0123456789",
        "candidate": "the working tree",
        "started_at": "2026-01-31T12:00:00+00:00",
        "machine": MACHINE,
        "torch": "2.13.0+cpu",
        "measure_version": 2,
        "timed": True,
        "cases": (
            CaseVerdict(case=case(), reference=OK, candidate=OK, time=QUIET),
            CaseVerdict(
                case=case("bf16"), reference=OK, candidate=OK, differences=HEAVIER, time=SLOWER
            ),
            CaseVerdict(case=case("accum2"), reference=OK, candidate=SICK),
            CaseVerdict(
                case=case("ckpt1"), reference=OK, candidate=OK, refused="torch: 1 against 2"
            ),
        ),
    }
    return Gate(**fields | changes)


def test_the_terminal_tells_verdict_amount_and_why():
    text = gate_tables.terminal(gate())
    assert text.startswith(
        "the working tree against commit 0123456789: 2 regression, 1 refused, 1 none"
    )
    row = next(line for line in text.splitlines() if line.startswith("gpt-1m@batch=8 bf16 "))
    assert "operators +1, steady peak -1.00 MiB" in row
    assert "CPU time +4.8%, p 0.0002" in row
    assert "4 interleaved pairs, 1 disturbed" in row
    assert "none; +2.1% would have been seen" in text
    assert "  operators worse: 1,000 -> 1,001 (+1)\n    aten.mm: 10 -> 11 (+1)" in text
    assert "  steady peak better: 3.00 MiB -> 2.00 MiB (-1.00 MiB)" in text
    assert "not comparable: torch: 1 against 2" in text
    assert "adjusted for 4 cases" in text
    assert "1 of 4 pairs were disturbed: wall time dropped\n" in text
    assert "\x1b" not in text


def test_a_suspect_says_what_is_equal_and_another_loss_what_it_was():
    suspect = replace(SLOWER, verdict="suspect")
    loss = Difference(
        figure="loss", change="beyond tolerance", unit="value", old=4.5, new=4.75, detail=("why",)
    )
    figures = ("operators", "saved_for_backward", "loss")
    one = CaseVerdict(
        case=case(), reference=OK, candidate=OK, time=suspect, compared=figures
    )  # fmt: skip
    equal = gate_tables.terminal(gate(cases=(one,)))
    assert "counters equal" in equal
    assert "CPU time +4.8%, p 0.0002, not confirmed" in equal
    assert "not confirmed" not in gate_tables.terminal(gate())
    assert "  equal: operators, alive after forward, loss\n" in equal
    other = gate(cases=(replace(one, differences=(loss,)),))
    assert (other.cases[0].verdict, other.exit_code) == ("changed", 1)
    text = gate_tables.terminal(other)
    assert text.startswith("the working tree against commit 0123456789: 1 changed")
    assert "  loss beyond tolerance: 4.5 -> 4.75 (+0.25)\n    why" in text
    [shown] = ElementTree.fromstring(gate_tables.junit(other)).iter("failure")
    assert shown.get("message").startswith("changed: loss beyond tolerance")


def test_a_pin_that_differs_is_said_not_to_be_applied():
    pin = Pin(name="torch", file="requirements.txt", old="==2.12", new=None)
    pinned = gate(pins=(pin,))
    line = "the pin of torch differs and was not applied: ==2.12 -> none in requirements.txt"
    assert line in gate_tables.terminal(pinned).splitlines()
    assert "the pin of torch differs and was not applied" in gate_tables.markdown(pinned)
    assert gate_tables.as_json(pinned)["pins"] == (pin.to_json(),)
    assert pinned.exit_code == gate().exit_code


def test_few_bytes_are_shown_as_they_are():
    few = replace(HEAVIER[1], change="worse", new=HEAVIER[1].old + 44)
    one = CaseVerdict(case=case(), reference=OK, candidate=OK, differences=(few,))
    assert "steady peak +44 bytes" in gate_tables.terminal(gate(cases=(one,)))


def test_one_case_needs_no_adjustment_and_no_clock_no_rule():
    alone = gate(cases=gate().cases[:1])
    assert "adjusted" not in gate_tables.terminal(alone)
    untimed = gate_tables.terminal(gate(cases=gate().cases[:1], timed=False))
    assert "Time was not compared." in untimed
    assert "Wilcoxon" not in untimed


def test_cpu_time_alone_is_said():
    crowded = TimeVerdict(
        verdict="none",
        method="ping-pong",
        figure="cpu_total",
        estimate=0.0,
        p=None,
        minimum_effect=0.02,
        smallest_seen=0.02,
        weighed=(weighed("screen"),),
        pairs=(measured(disturbances=CROWD),),
    )
    one = CaseVerdict(case=case(), reference=OK, candidate=OK, time=crowded)
    assert "so CPU time alone was judged" in gate_tables.terminal(gate(cases=(one,)))


def test_nothing_acts_as_markup_in_markdown():
    text = gate_tables.markdown(gate())
    assert "| gpt-1m@batch=8 bf16 | regression |" in re.sub(" +", " ", text)
    assert "- operators worse" in text
    assert r"\<b\>" in text
    assert "\x1b" not in text


def test_json_holds_raw_pairs_and_their_log_ratios():
    told = json.loads(json.dumps(gate_tables.as_json(gate())))
    assert told["exit_code"] == 1
    assert [one["verdict"] for one in told["cases"]] == [
        "none", "regression", "regression", "refused",
    ]  # fmt: skip
    [first, *_] = told["cases"][1]["time"]["pairs"]
    assert math.isclose(first["log_ratios"]["cpu_total"], 0.05)
    assert first["pair"]["reference"][0]["step_s"] == [1.0]


def test_junit_has_one_test_case_a_case():
    suite = ElementTree.fromstring(gate_tables.junit(gate()))
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4", "failures": "2", "errors": "1", "skipped": "0",
    }  # fmt: skip
    found = {one.get("name"): [child.tag for child in one] for one in suite.iter("testcase")}
    assert found == {
        "gpt-1m@batch=8 baseline": ["system-out"],
        "gpt-1m@batch=8 bf16": ["failure"],
        "gpt-1m@batch=8 accum2": ["failure"],
        "gpt-1m@batch=8 ckpt1": ["error"],
    }
    assert "aten.mm: 10 -> 11 (+1)" in suite.findall("testcase")[1].find("failure").text


def test_the_plot_shows_pairs_in_order_and_marks_what_was_dropped():
    traces = pair_plot._traces(gate().cases[1], first=True)
    _, cpu, wall = traces
    assert list(cpu.x) == [1, 2, 3, 4]
    assert [round(y, 1) for y in cpu.y] == [5.1] * 4
    assert list(cpu.marker.symbol) == ["circle"] * 4
    assert list(wall.marker.symbol) == ["circle", "x", "circle", "circle"]
    assert CROWD[0] in wall.text[1]
    assert pair_plot._stages(gate().cases[1]) == [2.5, 3.5]
    page = pair_plot.page(gate())
    assert "plotly" in page
    assert "\x1b" not in page
    assert "no case" not in pair_plot.page(gate(cases=()))


def test_reading_a_result_needs_no_torch():
    assert Gate.from_json(json.loads(json.dumps(gate().to_json()))) == gate()

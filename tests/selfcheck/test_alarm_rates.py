"""The published error rates, from pairs made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from stepbench.records.pair import Block, Pair
from stepbench.selfcheck import alarm_rates
from stepbench.selfcheck.alarm_rates import (
    SHAPES,
    asv_rate,
    both_ways,
    by_asv,
    false_alarms,
    found,
    live,
    planted,
    rate,
    simulated,
)

STEPS = 10


def made(index, *, luck=0.0, drift=0.0, rng):
    """A pair of seven blocks whose steps take a second, but for noise, luck and a drifting host."""

    def blocks(slower):
        machine = math.exp(drift * math.sin(index / 5) + slower)
        each = machine * np.exp(rng.normal(0, 0.01, size=(7, STEPS)))
        return tuple(Block(step_s=tuple(row), cpu_s=tuple(row)) for row in each.tolist())

    return Pair(
        method="ping-pong",
        order="reference first",
        device="cpu",
        reference=blocks(0.0),
        candidate=blocks(luck + rng.normal(0, 0.01)),
        stolen_share=0.0,
        foreign_cores=0.5,
        disturbances=(),
    )


def pairs(many=40, **how):
    rng = np.random.default_rng(7)
    return [made(index, rng=rng, **how) for index in range(many)]


def test_an_exact_interval_by_hand():
    # Clopper-Pearson of 0 of 10: the upper end is 1 - 0.025^(1/10) = 30.85%.
    assert rate(0, 10) == "0.0% [0.0%, 30.8%]"
    assert rate(9, 10).startswith("90.0% [55.5%,")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_planted_cost_is_in_the_total_and_on_its_steps(shape):
    flat = (Block(step_s=(1.0,) * 30, cpu_s=(1.0,) * 30, delay_s=(0.0,) * 30),) * 2
    [pair] = pairs(1)
    slow = planted(replace(pair, reference=flat, candidate=flat), 0.05, shape, 0)
    assert slow.log_ratio("cpu_total") == pytest.approx(math.log(1.05))
    assert slow.log_ratio("wall_total") == pytest.approx(math.log(1.05))
    steps = [s for block in slow.candidate for s in block.step_s]
    assert sum(s > 1.001 for s in steps) == len(steps) * shape.hits // shape.period
    shifted = planted(replace(pair, candidate=flat), 0.05, shape, shape.period - 1)
    hit = [s > 1.001 for block in shifted.candidate for s in block.step_s]
    assert hit[0] == (shape.period == shape.hits)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_rule_finds_what_was_planted_and_nothing_else(shape):
    assert found(pairs(), 0.05, shape, gates=200) > 0.9
    alarms, bound = false_alarms(pairs(), gates=50)
    assert alarms <= bound <= 0.02


def test_both_ways_a_pair_is_its_own_mirror():
    both = both_ways(pairs(4))
    assert both[4].log_ratio("cpu_total") == pytest.approx(-both[0].log_ratio("cpu_total"))


def test_a_drifting_machine_fools_asv():
    assert asv_rate(pairs(drift=0.3), 0.0) > 0.1
    assert asv_rate(pairs(), 0.0) == 0
    assert asv_rate(pairs(), 0.15) == 1


def test_the_tables_name_what_they_are_of(monkeypatch):
    monkeypatch.setattr(alarm_rates, "SIMULATED", 20)
    monkeypatch.setattr(alarm_rates, "RESAMPLED", 10)
    lines = [
        {"workload": "gpt-tiny", "condition": name, "pair": alarm_rates.rounded(pair)}
        for name in ("quiet", "crowded")
        for pair in pairs(20)
    ]
    for table in (simulated(lines), by_asv(lines)):
        cells = [[cell.strip() for cell in row.split("|")] for row in table.splitlines()[2:]]
        assert [row[1:3] for row in cells] == [["gpt-tiny", "crowded"], ["gpt-tiny", "quiet"]]
    ended = {"percent": 0, "shape": "uniform", "condition": "quiet", "verdict": "none", "pairs": 6}
    [row] = live([ended, {**ended, "verdict": "suspect"}]).splitlines()[2:]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["nothing", "quiet", "2", "0.0% [0.0%, 84.2%]", "1", "1", "0", "0", "12"]

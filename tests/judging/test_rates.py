"""The published error rates, from pairs made by hand."""

import math

import numpy as np
import pytest

from benchmarks.aa_rates import ASV_DRAWN, asv_rates, by_asv, live, rate, rule_rates, simulated
from harness.verdicts import Pair
from tests.judging.test_trial import a_pair


def lines(percent, *, drift=0.0, pairs=64):
    rng = np.random.default_rng(7)
    made = []
    for index, noise in enumerate(rng.normal(0, 0.01, size=pairs)):
        slower = math.log1p(percent / 100) + noise
        machine = math.exp(drift * math.sin(index / 5) + rng.normal(0, 0.01))
        pair = a_pair(slower)
        medians = {"reference": machine, "candidate": machine * math.exp(slower)}
        made.append({"percent": percent, "pair": pair.to_json(), "median_step_s": medians})
    return made


def test_an_exact_interval_by_hand():
    # Clopper-Pearson of 0 of 10: the upper end is 1 - 0.025^(1/10) = 30.85%.
    assert rate(0, 10) == "0.00% [0.00%, 30.85%]"
    assert rate(9, 10).startswith("90.00% [55.50%,")


@pytest.mark.parametrize("figures", [("cpu_s",), ("cpu_s", "step_s")])
def test_the_rule_finds_what_was_planted_and_nothing_else(figures):
    def pairs(percent):
        return [Pair.from_json(one["pair"]) for one in lines(percent)]

    assert rule_rates(pairs(5), figures, gates=200)["regression"] > 190
    assert rule_rates(pairs(0), figures, gates=200)["regression"] <= 1


def test_a_drifting_machine_fools_asv_when_commits_are_measured_apart():
    drifting = lines(0, drift=0.3)
    apart = asv_rates(drifting, 1.1, in_turn=False)
    in_turn = asv_rates(drifting, 1.1, in_turn=True)
    assert apart > ASV_DRAWN / 10
    assert in_turn == 0


def test_the_tables_name_effect_and_numbers():
    for table in (simulated([*lines(0), *lines(5)]), by_asv([*lines(0), *lines(5)])):
        assert [row.split("|")[1].strip() for row in table.splitlines()[2:]] == ["0%", "5%"]
    ended = {"percent": 0, "verdict": "none", "pairs": 6, "disturbed": 3}
    [row] = live([ended, {**ended, "verdict": "suspect"}]).splitlines()[2:]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["0%", "2", "0: 0.00% [0.00%, 84.19%]", "1", "1", "0", "0", "12", "50%"]

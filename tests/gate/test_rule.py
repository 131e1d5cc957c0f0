"""The staged rule against p values and estimates worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from stepbench.stats import rule
from stepbench.stats.rule import (
    PAIRS_A_START,
    StagedRule,
    discoveries,
    goes_on,
    hodges_lehmann,
    simulate,
    strongest,
    weigh,
)


def test_p_values_by_hand():
    # All six positive: one arrangement of signs in 2^6 has a rank sum as large.
    six = weigh([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert (six.p_slower, six.p_faster) == (1 / 64, 1.0)
    # The smallest is negative: rank sum 20 of 21; {21}, {20}: two arrangements.
    assert weigh([-0.01, 0.02, 0.03, 0.04, 0.05, 0.06]).p_slower == 2 / 64
    # Signs of ranks 1..3: + + -: rank sum 3 of 6. Sums of subsets: 0 1 2 3 3 4 5 6, five are >= 3.
    assert weigh([0.1, 0.2, -0.3]).p_slower == 5 / 8
    assert weigh([-0.1, -0.2, 0.3]).p_faster == 5 / 8
    assert weigh([0.0, 0.0, 0.0]).p_slower == 1.0


def test_hodges_lehmann_by_hand():
    # Means of pairs: 1 1.5 5.5, 2 6, 10 -> sorted 1 1.5 2 5.5 6 10.
    assert hodges_lehmann([1, 2, 10]) == 3.75
    assert hodges_lehmann([[1, 2, 10], [7, 7, 7]]).tolist() == [3.75, 7]


def test_rows_are_weighed_as_one_by_one():
    rows = np.random.default_rng(3).normal(size=(50, 20))
    together = weigh(rows)
    alone = [weigh(row) for row in rows]
    assert together.p_slower.tolist() == [float(one.p_slower) for one in alone]
    assert together.estimate.tolist() == [float(one.estimate) for one in alone]


def test_the_screen_stops_what_shows_no_direction():
    quiet = {"cpu_total": weigh([0.01, -0.011, 0.012, -0.013, 0.014, -0.015])}
    assert not goes_on(quiet)
    assert goes_on(quiet | {"wall_total": weigh([0.01, 0.02, 0.03, 0.04, -0.001, 0.05])})
    assert goes_on({"cpu_total": weigh([-0.01, -0.02, -0.03, -0.04, 0.001, -0.05])})


def test_a_metric_below_the_minimum_effect_is_not_the_strongest():
    twenty = np.linspace(0.001, 0.002, 20)
    weights = {"cpu_total": weigh(twenty), "wall_total": weigh(np.linspace(-0.005, 0.05, 20)[::-1])}
    weights["wall_total"] = replace(weights["wall_total"], error=np.asarray(0.005))
    p, figure = strongest(weights, "slower", 0.01)
    assert figure == 1
    assert p == 2 * weights["wall_total"].p_slower > 2 * weights["cpu_total"].p_slower
    assert strongest(weights, "slower", 0.1)[0] == 1.0
    assert strongest(weights, "faster", 0.01)[0] == 1.0


def test_the_minimum_effect_follows_the_spread_between_starts():
    # Starts of two pairs each: means 0.01, 0.03, 0.05; variance 0.0004, standard error of three.
    values = [0.0, 0.02, 0.02, 0.04, 0.06, 0.04]
    weight = weigh(values)
    assert weight.error == pytest.approx(0.02 / math.sqrt(3))
    assert weigh([*values, math.nan]).error == weight.error
    assert weigh([0.01, 0.03]).error == 0.0
    # An estimate of 0.03 is beyond two standard errors of 0.0115, and one of 0.02 is not.
    assert strongest({"cpu_total": weight}, "slower", 0.01)[0] < 1
    assert strongest({"cpu_total": weigh(np.asarray(values) - 0.01)}, "slower", 0.01)[0] == 1.0


def test_pairs_that_are_not_judged_leave_the_rest_or_nothing():
    values = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    left = weigh([*values, math.nan, math.nan], wanted=6)
    assert (left.p_slower, left.estimate) == (1 / 64, weigh(values).estimate)
    alone = weigh([0.01, 0.02, 0.03, math.nan, math.nan, math.nan], wanted=6)
    assert np.isnan([alone.p_slower, alone.p_faster, alone.estimate, alone.error]).all()
    p, figure = strongest({"cpu_total": left, "wall_total": alone}, "slower", 0.01)
    assert (p, figure) == (1 / 64, 0)  # one metric was judged


def test_false_discoveries_by_hand():
    # Benjamini-Hochberg: 0.004 x 3/1 = 0.012, 0.03 x 3/2 = 0.045, 0.9.
    assert discoveries([0.004, 0.03, 0.9], 0.05) == [True, True, False]
    assert discoveries([0.004, 0.03, 0.9], 0.013) == [True, False, False]
    assert discoveries([0.004], 0.005) == [True]
    assert discoveries([], 0.05) == []


def noise(pairs=400, spread=0.012):
    drawn = np.random.default_rng(1).normal(0, spread, size=pairs)
    waits = np.random.default_rng(2).normal(0, 0.01, size=pairs)
    return {"cpu_total": drawn, "wall_total": drawn + waits}


def share(rows, verdict, *, minimum=0.01, gates=500):
    ended = simulate(rows, minimum=minimum, gates=gates)
    assert sum(ended.values()) == gates
    return ended.get(verdict, 0) / gates


def test_equal_trees_are_not_told_apart_and_slow_ones_are():
    assert share(noise(), "regression", gates=2000) <= 0.001
    assert share(noise(), "improvement", gates=2000) <= 0.001
    slower = {figure: row + math.log(1.05) for figure, row in noise().items()}
    assert share(slower, "regression") > 0.98
    assert share({figure: -row for figure, row in slower.items()}, "improvement") > 0.98


def test_what_one_start_favours_is_no_regression():
    # Each start keeps its luck of ±2% over both of its pairs.
    luck = np.repeat(np.random.default_rng(3).normal(0, 0.02, size=200), PAIRS_A_START)
    rows = {figure: row / 10 + luck for figure, row in noise().items()}
    assert share(rows, "regression", minimum=0.02, gates=4000) < 0.003


def test_waiting_shows_in_wall_time_alone():
    rows = noise()
    waiting = {"cpu_total": rows["cpu_total"], "wall_total": rows["wall_total"] + 0.05}
    assert share(waiting, "regression") > 0.98


def test_disturbed_pairs_are_replaced_in_simulated_gates_too():
    rows = noise()
    some = np.random.default_rng(4).random(400) < 0.2
    slower = {
        "cpu_total": rows["cpu_total"],
        "wall_total": np.where(some, np.nan, rows["wall_total"] + 0.05),
    }
    assert share(slower, "regression") > 0.95
    most = np.random.default_rng(4).random(400) < 0.9
    alone = {"wall_total": np.where(most, np.nan, rows["wall_total"] + 0.05)}
    assert share(alone, "not enough data", gates=100) > 0.95


def test_what_simulates_a_gate_is_what_judges_one(monkeypatch):
    values = noise()["cpu_total"][:2] + 0.05
    monkeypatch.setattr(StagedRule, "run", lambda self, measure: self.verdicts.fill("suspect"))
    assert simulate({"cpu_total": values}, minimum=0.01, gates=3) == {"suspect": 3}


def test_the_smallest_effect_that_would_have_been_seen_grows_with_the_noise():
    six = {figure: row[:6] for figure, row in noise().items()}
    loud = {figure: 4 * row for figure, row in six.items()}
    small, large = rule.smallest_seen(six, 0.01), rule.smallest_seen(loud, 0.01)
    assert 0.01 < small < large / 2
    shifted = {figure: row + small for figure, row in noise().items()}
    assert share(shifted, "regression") > 0.5
    quiet = rule.smallest_seen({"cpu_total": np.full(6, 0.002)}, 0.01)
    assert quiet == pytest.approx(0.01, rel=0.06)

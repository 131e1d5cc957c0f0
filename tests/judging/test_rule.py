"""The staged rule against p values and estimates worked out by hand."""

import math

import numpy as np
import pytest

from harness.judging import rule
from harness.judging.rule import discoveries, goes_on, hodges_lehmann, simulate, strongest, weigh


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
    quiet = {"cpu_s": weigh([0.01, -0.011, 0.012, -0.013, 0.014, -0.015])}
    assert not goes_on(quiet)
    assert goes_on(quiet | {"step_s": weigh([0.01, 0.02, 0.03, 0.04, -0.001, 0.05])})
    assert goes_on({"cpu_s": weigh([-0.01, -0.02, -0.03, -0.04, 0.001, -0.05])})


def test_a_figure_below_the_floor_is_not_the_strongest():
    twenty = np.linspace(0.001, 0.002, 20)
    weights = {"cpu_s": weigh(twenty), "step_s": weigh(np.linspace(-0.005, 0.05, 20))}
    p, figure = strongest(weights, "slower", 0.01)
    assert figure == 1
    assert p == 2 * weights["step_s"].p_slower > 2 * weights["cpu_s"].p_slower
    assert strongest(weights, "slower", 0.1)[0] == 1.0
    assert strongest(weights, "faster", 0.01)[0] == 1.0


def test_false_discoveries_by_hand():
    # Benjamini-Hochberg: 0.004 x 3/1 = 0.012, 0.03 x 3/2 = 0.045, 0.9.
    assert discoveries([0.004, 0.03, 0.9], 0.05) == [True, True, False]
    assert discoveries([0.004, 0.03, 0.9], 0.013) == [True, False, False]
    assert discoveries([0.004], 0.005) == [True]
    assert discoveries([], 0.05) == []


def noise(pairs=400, spread=0.012):
    drawn = np.random.default_rng(1).normal(0, spread, size=pairs)
    return {"cpu_s": drawn, "step_s": drawn + np.random.default_rng(2).normal(0, 0.01, size=pairs)}


def test_equal_trees_are_not_told_apart_and_slow_ones_are():
    equal = simulate(noise(), floor=0.01, gates=2000)
    assert sum(equal.values()) == 2000
    assert equal["regression"] <= 2
    assert equal["improvement"] <= 2
    slower = {figure: row + math.log(1.05) for figure, row in noise().items()}
    assert simulate(slower, floor=0.01, gates=500)["regression"] > 490
    mirrored = simulate({figure: -row for figure, row in slower.items()}, floor=0.01, gates=500)
    assert mirrored["improvement"] > 490


def test_waiting_shows_in_wall_time_alone():
    rows = noise()
    waiting = {"cpu_s": rows["cpu_s"], "step_s": rows["step_s"] + 0.05}
    assert simulate(waiting, floor=0.01, gates=500)["regression"] > 490


def test_the_smallest_effect_that_would_have_been_seen_grows_with_the_noise():
    six = {figure: row[:6] for figure, row in noise().items()}
    loud = {figure: 4 * row for figure, row in six.items()}
    small, large = rule.smallest_seen(six, 0.01), rule.smallest_seen(loud, 0.01)
    assert 0.01 < small < 0.04 < large
    shifted = {figure: row + small for figure, row in noise().items()}
    assert simulate(shifted, floor=0.01, gates=500)["regression"] > 250
    assert rule.smallest_seen({"cpu_s": np.full(6, 0.002)}, 0.01) == pytest.approx(0.01, rel=0.06)

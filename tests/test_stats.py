"""Statistics against numbers computed by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from harness import stats
from harness.core import Outcome
from tests.synthetic import MIB, case, measurement, record


def pair(case_s, baseline_s, **kwargs):
    return measurement([case_s], **kwargs), measurement([baseline_s])


def test_a_process_counts_as_its_median_step():
    assert stats.step_s(measurement([0.3, 0.1, 9.0])) == 0.3


@pytest.mark.parametrize(
    ("rounds", "low", "high"),
    [
        (5, None, None),  # 2 / 2**5 = 6.3%: even the range is not 95% sure
        (6, 1.0, 6.0),  # 2 / 2**6 = 3.1%
        (8, 1.0, 8.0),  # without the ends 2 * (1 + 8) / 2**8 = 7.0%
        (9, 2.0, 8.0),  # without the ends 2 * (1 + 9) / 2**9 = 3.9%
    ],
)
def test_interval_is_that_of_the_sign_test(rounds, low, high):
    found = stats.estimate([float(value) for value in range(rounds, 0, -1)])
    assert (found.low, found.high, found.rounds) == (low, high, rounds)
    assert found.median == (rounds + 1) / 2


def test_widened_interval_takes_the_whole_range_but_needs_6_rounds_too():
    nine = stats.estimate([float(value) for value in range(1, 10)], widened=True)
    assert (nine.low, nine.high) == (1.0, 9.0)
    assert stats.estimate([1.0, 2.0], widened=True).low is None


def test_speedup_is_baseline_over_case_paired_by_round():
    # Ratios 2, 1, 3; the medians of both sides, unpaired, would say 3.
    one = record(case("bf16"), [pair(1.0, 2.0), pair(10.0, 10.0), pair(1.0, 3.0)])
    assert stats.speedup(one).median == 2.0


def test_memory_ratio_is_case_over_baseline():
    pairs = [(measurement(peak_bytes=60 * MIB), measurement(peak_bytes=80 * MIB))]
    assert stats.memory_ratio(record(case("ckpt2"), pairs)).median == 0.75


def with_disturbed(count):
    """Nine rounds with ratios 1 to 9, the last `count` of them disturbed."""
    told = [["steal 12%"] if ratio > 9 - count else [] for ratio in range(1, 10)]
    return record(
        case("bf16"),
        [pair(1.0, float(ratio), disturbances=told[ratio - 1]) for ratio in range(1, 10)],
    )


def test_a_third_of_disturbed_rounds_is_set_aside():
    quiet, some = stats.speedup(with_disturbed(0)), stats.speedup(with_disturbed(3))
    assert (quiet.low, quiet.median, quiet.high, quiet.rounds) == (2.0, 5.0, 8.0, 9)
    assert (some.low, some.median, some.high, some.rounds) == (1.0, 3.5, 6.0, 6)
    assert stats.disturbances(with_disturbed(3)) == ()


def test_more_disturbed_rounds_are_kept_and_widen_the_interval():
    many = stats.speedup(with_disturbed(4))
    assert (many.low, many.median, many.high, many.rounds) == (1.0, 5.0, 9.0, 9)
    assert stats.disturbances(with_disturbed(4)) == ("steal 12%",)


def test_an_unpaired_ratio_is_the_median_of_all_ratios():
    # 6/2, 6/3, 12/2, 12/3 are 3, 2, 6, 4: the median of new over the median of old would be 3.6.
    found = stats.unpaired_ratio([2.0, 3.0], [6.0, 12.0])
    assert (found.median, found.low, found.high, found.rounds) == (3.5, None, None, 2)


@pytest.mark.parametrize(("old", "new"), [(6, 6), (6, 9), (8, 8), (12, 7)])
def test_its_interval_ends_where_the_mann_whitney_test_rejects(old, new):
    random = np.random.default_rng(old * new)
    before, after = random.lognormal(size=old), random.lognormal(0.3, size=new)
    found = stats.unpaired_ratio(list(before), list(after))

    def p(ratio):
        return scipy.stats.mannwhitneyu(after, before * ratio, method="exact").pvalue

    for end, outwards in ((found.low, 1 - 1e-9), (found.high, 1 + 1e-9)):
        assert p(end * outwards) <= 0.05 < p(end / outwards)


def test_its_widened_interval_is_the_range_of_all_ratios_but_needs_6_rounds_too():
    six = stats.unpaired_ratio([1.0] * 5 + [2.0], [1.0] * 5 + [8.0], widened=True)
    assert (six.low, six.high) == (0.5, 8.0)
    assert stats.unpaired_ratio([1.0] * 5, [1.0] * 9, widened=True).low is None


@pytest.mark.parametrize(
    ("reference", "values", "expected"),
    [
        ([2.0, 4.0], [2.0, 4.0], 0.0),
        ([2.0, 4.0], [2.2, 4.0], 0.1),
        ([-2.0, 4.0], [-2.0, 3.0], 0.25),
        ([2.0], [math.nan], math.inf),
        ([math.nan], [2.0], math.inf),
        ([math.nan], [math.nan], math.inf),
        ([2.0], [math.inf], math.inf),
        ([math.inf], [math.inf], math.inf),
        ([0.0], [0.0], 0.0),
    ],
)
def test_relative_difference(reference, values, expected):
    assert stats.relative_difference(reference, values) == pytest.approx(expected)


def test_nan_after_a_larger_difference_is_not_lost():
    assert stats.relative_difference([1.0, 1.0, 1.0], [9.0, math.nan, 1.0]) == math.inf


def test_series_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        stats.relative_difference([1.0, 2.0], [1.0])


def test_loss_difference_is_the_worst_round_of_loss_or_gradient_norm():
    base = measurement(losses=[5.0, 4.0], grad_norms=[1.0, 2.0])
    loss_off = measurement(losses=[5.0, 4.4], grad_norms=[1.0, 2.0])
    norm_off = measurement(losses=[5.0, 4.0], grad_norms=[1.5, 2.0])
    assert stats.parity_difference(base, loss_off) == pytest.approx(0.1)
    both = record(case("bf16"), [(loss_off, base), (norm_off, base), (base, base)])
    assert stats.loss_difference(both) == pytest.approx(0.5)


def test_disturbances_of_case_and_baseline_are_told_once_in_order():
    stolen, loaded = measurement(disturbances=["steal"]), measurement(disturbances=["load"])
    one = record(case("bf16"), [(stolen, loaded), (stolen, stolen)])
    assert stats.disturbances(one) == ("steal", "load")


def test_a_record_without_rounds_has_no_ratio():
    with pytest.raises(ValueError, match="no rounds"):
        stats.speedup(record(case("bf16"), outcome=Outcome(kind="failed", reason="why")))


def test_a_ratio_is_of_one_statistic_where_either_side_waits_in_bursts():
    """Without workers, one step of four loads for all; with one, all wait a little."""
    alone = replace(measurement([0.01, 0.01, 0.01, 0.17]), data_wait_s=(0, 0, 0, 0.16))
    worker = measurement([0.05] * 4)
    worker = replace(worker, counters=replace(worker.counters, loader_processes=1))
    assert stats.step_s(alone) == pytest.approx(0.05)
    assert stats.step_ratio(alone, worker) == pytest.approx(1.0)
    plain = measurement([0.05, 0.05, 0.05, 0.25])  # slow once for no want of data
    assert stats.step_s(plain) == pytest.approx(0.05)
    assert stats.step_s(plain, worker) == pytest.approx(0.1)
    assert stats.step_ratio(plain, worker) == pytest.approx(2.0)


def test_a_step_is_the_mean_where_workers_deliver_in_bursts():
    bursts = measurement([0.001, 0.001, 0.001, 0.197])
    assert stats.step_s(bursts) == 0.001
    loaded = replace(bursts, counters=replace(bursts.counters, loader_processes=4))
    assert stats.step_s(loaded) == pytest.approx(0.05)

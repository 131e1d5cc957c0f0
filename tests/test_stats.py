"""Statistics against numbers computed by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from stepbench.metrics.beside import LOSS_DIFFERENCE, MEMORY_RATIO, SPEEDUP
from stepbench.records.outcome import Outcome
from stepbench.stats import measures
from tests.synthetic import MIB, case, measurement, record


def pair(case_s, baseline_s, **kwargs):
    return measurement([case_s], **kwargs), measurement([baseline_s])


def test_a_step_is_all_time_over_all_steps():
    one = measurement([0.1, 0.1, 0.7])
    assert measures.step_s(one) == pytest.approx(0.3)
    assert measures.typical_step_s(one) == 0.1
    assert measures.is_amortised(one)
    assert not measures.is_amortised(measurement([0.1, 0.1, 0.11]))


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
    found = measures.estimate([float(value) for value in range(rounds, 0, -1)])
    assert (found.low, found.high, found.rounds) == (low, high, rounds)
    assert found.median == (rounds + 1) / 2


def test_widened_interval_takes_the_whole_range_but_needs_6_rounds_too():
    nine = measures.estimate([float(value) for value in range(1, 10)], widened=True)
    assert (nine.low, nine.high) == (1.0, 9.0)
    assert measures.estimate([1.0, 2.0], widened=True).low is None


def test_speedup_is_baseline_over_case_paired_by_round():
    # Ratios 2, 1, 3; the medians of both sides, unpaired, would say 3.
    one = record(case("bf16"), [pair(1.0, 2.0), pair(10.0, 10.0), pair(1.0, 3.0)])
    assert SPEEDUP.of(one).median == 2.0


def test_memory_ratio_is_case_over_baseline():
    pairs = [(measurement(peak_bytes=60 * MIB), measurement(peak_bytes=80 * MIB))]
    assert MEMORY_RATIO.of(record(case("ckpt2"), pairs)).median == 0.75


def with_disturbed(count):
    """Nine rounds with ratios 1 to 9, the last `count` of them disturbed."""
    told = [["steal 12%"] if ratio > 9 - count else [] for ratio in range(1, 10)]
    return record(
        case("bf16"),
        [pair(1.0, float(ratio), disturbances=told[ratio - 1]) for ratio in range(1, 10)],
    )


def test_a_third_of_disturbed_rounds_is_set_aside():
    quiet, some = SPEEDUP.of(with_disturbed(0)), SPEEDUP.of(with_disturbed(3))
    assert (quiet.low, quiet.median, quiet.high, quiet.rounds) == (2.0, 5.0, 8.0, 9)
    assert (some.low, some.median, some.high, some.rounds) == (1.0, 3.5, 6.0, 6)
    assert measures.disturbances(with_disturbed(3)) == ()


def test_more_disturbed_rounds_are_kept_and_widen_the_interval():
    many = SPEEDUP.of(with_disturbed(4))
    assert (many.low, many.median, many.high, many.rounds) == (1.0, 5.0, 9.0, 9)
    assert measures.disturbances(with_disturbed(4)) == ("steal 12%",)


def test_an_unpaired_ratio_is_the_median_of_all_ratios():
    # 6/2, 6/3, 12/2, 12/3 are 3, 2, 6, 4: the median of new over the median of old would be 3.6.
    found = measures.unpaired_ratio([2.0, 3.0], [6.0, 12.0])
    assert (found.median, found.low, found.high, found.rounds) == (3.5, None, None, 2)


@pytest.mark.parametrize(("old", "new"), [(6, 6), (6, 9), (8, 8), (12, 7)])
def test_its_interval_ends_where_the_mann_whitney_test_rejects(old, new):
    random = np.random.default_rng(old * new)
    before, after = random.lognormal(size=old), random.lognormal(0.3, size=new)
    found = measures.unpaired_ratio(list(before), list(after))

    def p(ratio):
        return scipy.stats.mannwhitneyu(after, before * ratio, method="exact").pvalue

    for end, outwards in ((found.low, 1 - 1e-9), (found.high, 1 + 1e-9)):
        assert p(end * outwards) <= 0.05 < p(end / outwards)


def test_its_widened_interval_is_the_range_of_all_ratios_but_needs_6_rounds_too():
    six = measures.unpaired_ratio([1.0] * 5 + [2.0], [1.0] * 5 + [8.0], widened=True)
    assert (six.low, six.high) == (0.5, 8.0)
    assert measures.unpaired_ratio([1.0] * 5, [1.0] * 9, widened=True).low is None


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
    assert measures.relative_difference(reference, values) == pytest.approx(expected)


def test_nan_after_a_larger_difference_is_not_lost():
    assert measures.relative_difference([1.0, 1.0, 1.0], [9.0, math.nan, 1.0]) == math.inf


def test_series_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        measures.relative_difference([1.0, 2.0], [1.0])


def test_loss_difference_is_the_worst_round_of_loss_or_gradient_norm():
    base = measurement(losses=[5.0, 4.0], grad_norms=[1.0, 2.0])
    loss_off = measurement(losses=[5.0, 4.4], grad_norms=[1.0, 2.0])
    norm_off = measurement(losses=[5.0, 4.0], grad_norms=[1.5, 2.0])
    assert measures.parity_difference(base, loss_off) == pytest.approx(0.1)
    both = record(case("bf16"), [(loss_off, base), (norm_off, base), (base, base)])
    assert LOSS_DIFFERENCE.of(both) == pytest.approx(0.5)


def test_disturbances_of_case_and_baseline_are_told_once_in_order():
    stolen, loaded = measurement(disturbances=["steal"]), measurement(disturbances=["load"])
    one = record(case("bf16"), [(stolen, loaded), (stolen, stolen)])
    assert measures.disturbances(one) == ("steal", "load")


def test_a_record_without_rounds_has_no_ratio():
    failed = record(case("bf16"), outcome=Outcome(kind="failed", reason="why"))
    assert SPEEDUP.of(failed) is None
    assert LOSS_DIFFERENCE.of(failed) is None


def window(steps, *, first=10, warmup=5, **changes):
    """A process whose window begins with batch `first` after `warmup` applied steps."""
    batches = tuple(range(first, first + len(steps)))
    return replace(measurement(steps), batches=batches, warmup_steps=warmup, **changes)


def test_where_a_period_is_known_the_mean_is_over_whole_ones():
    """25 steps of a period of 10 with one slow step: 20 of them, whatever the other 5 hold."""
    steps = [0.1] * 25
    for slow in (4, 14, 24):
        steps[slow] = 1.1
    assert measures.step_s(window(steps)) == pytest.approx((25 * 0.1 + 3) / 25)
    assert measures.step_s(window(steps, period=10)) == pytest.approx(0.2)
    assert measures.step_s(window(steps, period=30)) == measures.step_s(window(steps))


def test_a_step_that_compiled_leaves_a_gap_in_the_period():
    """Steps 3 and 12 are no samples: of two whole periods of 10, 18 steps are left."""
    steps = [1.1 if batch % 10 == 0 else 0.1 for batch in range(25)]
    batches = [batch for batch in range(25) if batch not in (3, 12)]
    one = window([steps[batch] for batch in batches], period=10)
    one = replace(one, batches=tuple(batches))
    assert measures.step_s(one) == pytest.approx((16 * 0.1 + 2 * 1.1) / 18)


def test_a_ratio_is_over_the_batches_that_both_sides_timed():
    baseline = window([1.0, 2.0, 3.0, 40.0, 50.0])
    case = window([0.5, 1.0, 1.5])
    assert measures.step_ratio(baseline, case) == pytest.approx(2.0)
    later = window([1.0, 1.5, 20.0, 25.0], first=11)
    assert measures.step_ratio(baseline, later) == pytest.approx(2.0)


def test_throughput_is_of_the_steps_that_were_timed():
    one = window([1.0, 3.0], step_tokens=(10, 90), tokens=50)
    assert measures.items_per_s(one) == 25
    slow_at_the_end = window([1.0, 3.0, 96.0], step_tokens=(10, 90, 5), period=2)
    assert measures.items_per_s(slow_at_the_end) == 25


def test_the_speed_of_a_grown_batch_is_that_of_its_loss_terms():
    grown = window([2.0], step_tokens=(300,))
    base = window([1.0], step_tokens=(100,))
    one = record(replace(case("bf16", ranks=2), batch_factor=2), [(grown, base)])
    assert SPEEDUP.of(one).median == pytest.approx(1.5)


def alone_on_a_cpu(one, **changes):
    return replace(one, environment={"device": "cpu", "threads": 1}, **changes)


def test_a_step_without_its_run_delay():
    delayed = alone_on_a_cpu(window([0.1, 0.5]), delay_s=(0.0, 0.4))
    assert measures.undelayed_step_s(delayed) == pytest.approx(0.1)
    assert not measures.is_amortised(delayed)  # the slow step waited for a processor
    loaded = replace(delayed, counters=replace(delayed.counters, loader_processes=1))
    threads = replace(delayed, environment={"device": "cpu", "threads": 2})
    for unknown in (loaded, threads, replace(delayed, delay_s=())):
        assert measures.undelayed_step_s(unknown) is None


PERIODIC = [1.0 if step % 10 == 4 else 0.1 for step in range(25)]
NOISY = [0.3 if step % 7 == 1 else 0.1 for step in range(25)]


def rounds_of(*sides):
    return record(case("bf16"), sides).rounds


def test_steps_slow_in_two_processes_have_a_period():
    plain = window([0.1] * 25)
    rounds = rounds_of((window(PERIODIC), plain), (window(PERIODIC, first=40), window(NOISY)))
    assert measures.periodicity(rounds) == ({9, 19, 29}, 10)  # 5 steps came before the windows
    told = measures.with_period(rounds)
    assert {one.case.period for one in told} == {one.baseline.period for one in told} == {10}


def test_steps_are_counted_from_the_first_that_was_applied():
    """One process warmed up two steps longer, and its scaler skipped one."""
    later = window(PERIODIC[1:], warmup=7, skipped_steps=1)
    rounds = rounds_of((window(PERIODIC), window(NOISY)), (later, window(NOISY)))
    assert measures.periodicity(rounds)[0] >= {9, 19, 29}


def test_steps_slow_in_one_process_are_noise():
    rounds = rounds_of((window(NOISY), window([0.1] * 25)), (window([0.1] * 25), window(NOISY)))
    assert measures.periodicity(rounds) == (frozenset(), None)
    assert measures.periodicity(rounds_of((window(PERIODIC), window(PERIODIC)))) == (
        frozenset(),
        None,
    )


def test_a_round_of_less_than_a_period_is_left_out_where_others_hold_one():
    short = (window([0.1] * 5, period=10), window([0.1] * 5, period=10))
    whole = (window(PERIODIC, period=10), window(PERIODIC, period=10))
    assert len(measures.judged(record(case("bf16"), [short, whole]))) == 1
    assert len(measures.judged(record(case("bf16"), [short, short]))) == 2

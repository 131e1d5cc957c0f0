"""Both sides of a round time the same batches, equally warm, and rounds walk on."""

import itertools
from dataclasses import replace

import pytest

from stepbench.measuring import measure as measure_module
from stepbench.measuring import window
from stepbench.measuring.measure import measure
from stepbench.measuring.probes.timing import Window
from stepbench.measuring.settings import Settings
from stepbench.measuring.window_plan import PARITY_STEPS, WindowPlan, by_one_plan, first_plan
from stepbench.records.case import Case
from stepbench.stats import measures
from stepbench.training import build as build_module
from stepbench.training.data import Batches
from stepbench.training.techniques import parse
from stepbench.training.types import Plan
from stepbench.training.workloads import load
from tests.synthetic import case as synthetic_case
from tests.synthetic import measurement, record

TEXTS = "stepbench.selfcheck.uneven:texts@tokens=5,samples=64"
SETTINGS = Settings()
FIRST = PARITY_STEPS + 2
PLAN = WindowPlan(first_batch=FIRST, warmup_steps=2, least_steps=5, most_steps=20)


def timed(first, steps, *, slow=(), steady=True):
    """A process whose window begins with batch `first`, `slow` steps ten times as long."""
    seconds = [1.0 if step in slow else 0.1 for step in range(steps)]
    batches = tuple(range(first, first + steps))
    return replace(measurement(seconds), batches=batches, warmup_steps=first, steady=steady)


def rounds(*sides):
    return record(synthetic_case("bf16"), sides).rounds


def test_the_second_side_is_as_warm_and_times_no_more():
    told = PLAN.beside(timed(FIRST + 3, 12))
    assert (told.first_batch, told.warmup_steps, told.most_steps) == (FIRST + 3, 5, 12)
    assert PLAN.beside(timed(FIRST, 3)).most_steps == 5  # never fewer than the settings' least


def test_the_next_round_goes_on_where_both_sides_had_ended():
    told = PLAN.following(rounds((timed(FIRST + 2, 8), timed(FIRST + 2, 20))), SETTINGS)
    assert told == replace(PLAN, first_batch=FIRST + 10, warmup_steps=4, most_steps=8, agreed=True)


def test_an_unsteady_side_has_both_warm_up_longer():
    told = PLAN.following(rounds((timed(FIRST, 20), timed(FIRST, 20, steady=False))), SETTINGS)
    assert (told.warmup_steps, told.first_batch) == (4, FIRST + 20)


def test_warm_up_never_takes_the_batches_of_parity():
    one = timed(FIRST, 1, steady=False)
    told = replace(PLAN, least_steps=1).following(rounds((one, one)), SETTINGS)
    assert told.first_batch - told.warmup_steps == PARITY_STEPS


def grown(*slow, steps=12):
    """Steps of the next round after two in which these were slow on the case's side."""
    plan = replace(PLAN, most_steps=steps, agreed=True)
    one, other = timed(FIRST, steps, slow=slow), timed(FIRST, steps)
    return plan.following(rounds((one, other), (one, other)), SETTINGS).most_steps


def test_a_window_grows_until_it_holds_two_periods():
    assert grown() == 12
    assert grown(1, 4, 7, 10) == 12  # a period of 3
    assert grown(1, 10) == 18  # of 9
    assert grown(3) == 24  # slow once: a period of more than 8
    assert grown(3, steps=30) == 40  # not for ever


def test_what_workers_load_ahead_is_used_up_before_and_a_window_holds_each_twice():
    told = first_plan(Case(workload="gpt-tiny", combination=parse("workers3+prefetch4")), SETTINGS)
    assert (told.warmup_steps, told.least_steps) == (14, 6)


def walk(batches, left_out, wanted):
    loaded = Batches(load("gpt-tiny"), Plan(), batches_an_epoch=batches, left_out=left_out)
    return [(next(loaded), loaded.index)[1] for _ in range(wanted)]


def test_what_is_left_out_is_skipped_over_epochs_too():
    assert walk(6, range(2, 4), 5) == [0, 1, 4, 5, 6]
    assert walk(3, range(2, 10), 5) == [0, 1, 10, 11, 12]  # epochs 1 and 2 whole


@pytest.mark.parametrize("loader", [{}, {"num_workers": 2}])
def test_a_batch_is_the_same_however_it_was_reached(loader):
    """Batch 7 is the second of the third epoch of three."""
    workload = load("cnn-tiny")
    whole = Batches(workload, Plan(), batches_an_epoch=3)
    jumped = Batches(workload, Plan(loader=loader), batches_an_epoch=3, left_out=range(1, 7))
    every = [next(whole)[0] for _ in range(8)]
    assert every[0].equal(next(jumped)[0])
    assert every[7].equal(next(jumped)[0])
    assert (jumped.index, jumped.epoch) == (7, 2)


@pytest.fixture
def nothing_periodic(monkeypatch):
    """Whatever else the machine does makes no steps slow in two processes, and no window that a
    preemption between two marks would have timed again."""
    monkeypatch.setattr(measures, "periodicity", lambda rounds: (frozenset(), None))
    monkeypatch.setattr(Window, "objection", lambda window: None)


@pytest.mark.parametrize("name", ["accum2", "workers2"])
def test_sides_time_the_same_batches_and_rounds_walk_on(machine, name):
    case = Case(workload="gpt-tiny", combination=parse(name))
    settings = Settings(rounds=3, extra_rounds=0, max_steps=4, min_steps=4)
    told = measure(case, settings, machine)
    assert told.outcome.ok, told.outcome
    ends = [one.case.batches for one in told.rounds]
    assert ends == [one.baseline.batches for one in told.rounds]
    assert [one.case.warmup_steps for one in told.rounds] == [
        one.baseline.warmup_steps for one in told.rounds
    ]
    # A warm-up that has grown may push a window on; it never goes back.
    assert all(later[0] == earlier[-1] + 1 for earlier, later in itertools.pairwise(ends))


def test_the_loss_terms_are_those_of_the_batches_by_hand(machine, nothing_periodic):
    """Lengths differ from batch to batch, and an epoch has few of them: the window wraps."""
    settings = Settings(rounds=2, extra_rounds=0, max_steps=6, min_steps=6)
    told = measure(Case(workload=TEXTS), settings, machine)
    assert told.outcome.ok, told.outcome
    workload = load(TEXTS)
    batches = Batches(workload, Plan())
    terms = [workload.loss_terms(next(batches)[1]) for _ in range(64)]
    for one in told.rounds:
        for side in (one.case, one.baseline):
            assert side.step_tokens == tuple(terms[batch] for batch in side.batches)
            expected = sum(terms[batch] for batch in side.batches) / sum(side.step_s)
            assert measures.items_per_s(side) == pytest.approx(expected)
    assert told.rounds[1].case.batches[-1] >= batches.epoch_batches


@pytest.fixture
def warm_up_takes(monkeypatch):
    """Let the warm-up steps of a baseline and of `accum2` take these seconds by the clock; the last
    of them goes on."""

    def set_to(baseline, accum2):
        loop = build_module.plain_loop
        ahead = {}

        def remembered(model, optimizer, site):
            ahead["s"] = iter(accum2 if site.plan.micro_batches > 1 else baseline)
            return loop(model, optimizer, site)

        def timed(step, device):
            step()
            ahead["last"] = next(ahead["s"], ahead.get("last"))
            return ahead["last"]

        monkeypatch.setattr(build_module, "plain_loop", remembered)
        monkeypatch.setattr(window, "_timed", timed)

    return set_to


@pytest.fixture
def accum2(machine, monkeypatch, nothing_periodic):
    """Measure `accum2` of `gpt-tiny` in two rounds: the rounds, and the processes in order."""
    ran, process = [], measure_module._process

    def counted(case, settings, plan, device):
        ran.append((str(case.combination), plan.agreed))
        return process(case, settings, plan, device)

    monkeypatch.setattr(measure_module, "_process", counted)

    def run(**settings):
        case = Case(workload="gpt-tiny", combination=parse("accum2"))
        told = measure(case, Settings(rounds=2, extra_rounds=0, **settings), machine)
        assert told.outcome.ok, told.outcome
        return told.rounds, ran

    return run


def test_a_side_that_needs_more_warm_up_has_the_other_measured_again(accum2, warm_up_takes):
    warm_up_takes([0.1], [0.5, 0.4, 0.3, 0.2, 0.2])
    told, ran = accum2(max_steps=3, min_steps=3)
    for one in told:
        assert one.case.warmup_steps == one.baseline.warmup_steps == PARITY_STEPS + 5
        assert one.case.batches == one.baseline.batches
        assert one.case.steady
    again = [("baseline", False), ("accum2", False), ("baseline", True)]
    assert ran == [*again, ("accum2", True), ("baseline", True)]


def test_a_side_that_needs_less_is_as_warm_at_once(accum2, warm_up_takes):
    warm_up_takes([0.5, 0.4, 0.3, 0.2, 0.2], [0.1])
    told, ran = accum2(max_steps=3, min_steps=3)
    assert {side.warmup_steps for one in told for side in (one.case, one.baseline)} == {
        PARITY_STEPS + 5
    }
    assert len(ran) == 4


def test_noise_is_no_warm_up(accum2, warm_up_takes):
    warm_up_takes([0.1], [0.5 * 0.8**step for step in range(50)])
    told, ran = accum2(max_steps=3, min_steps=3)
    # The first round's case had told that it was unsteady.
    assert [one.case.warmup_steps - PARITY_STEPS for one in told] == [10, 12]
    assert not any(one.case.steady for one in told)
    assert len(ran) == 5


def test_of_a_side_that_fits_fewer_steps_the_common_ones_are_compared(accum2, warm_up_takes):
    warm_up_takes([0.01], [0.1])
    (first, second), _ = accum2(max_steps=20, min_steps=3, window_s=0.5)
    assert len(first.case.batches) == 5
    assert first.baseline.batches[:5] == first.case.batches
    assert len(first.baseline.batches) == 20
    assert measures.step_ratio(first.baseline, first.case) == pytest.approx(
        sum(first.baseline.step_s[:5]) / sum(first.case.step_s)
    )
    assert (
        second.case.batches
        == second.baseline.batches
        == tuple(range(PARITY_STEPS + 7, PARITY_STEPS + 12))
    )


def test_who_warmed_up_less_is_measured_again_on_the_others_batches():
    asked = []

    def timed(begun):
        return replace(measurement([0.1] * 4), batches=tuple(range(begun, begun + 4)))

    def first(plan):
        asked.append(plan)
        return timed(plan.first_batch)

    def second(plan):
        return timed(15)  # beyond the first one's window

    plan = WindowPlan(first_batch=10, warmup_steps=2, least_steps=4, most_steps=4)
    one, other = by_one_plan(first, second, plan)
    assert one.batches == other.batches == (15, 16, 17, 18)
    assert [(one.warmup_steps, one.agreed) for one in asked] == [(2, False), (7, True)]

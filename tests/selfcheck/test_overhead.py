"""What `selfcheck overhead` calls right, by figures made by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from stepbench.errors import StepbenchError
from stepbench.measuring.window_plan import PARITY_STEPS
from stepbench.selfcheck import overhead
from stepbench.selfcheck.overhead import UNEVEN, UNEVEN_WINDOW, right
from stepbench.stats.measures import Estimate
from tests.synthetic import MACHINE

EQUAL = Estimate(median=1.0, low=0.995, high=1.005, rounds=60)
OFF = Estimate(median=1.06, low=0.9, high=1.2, rounds=8)
SLOWER = Estimate(median=1.01, low=1.005, high=1.015, rounds=60)


@pytest.mark.parametrize(
    ("ratio", "costs", "device", "told"),
    [
        (EQUAL, [0.1, 0.4], "cpu", True),
        (EQUAL, [0.1, 0.6], "cpu", False),
        (EQUAL, [3.0, 9.0], "cuda", True),  # context, libraries and a larger model
        (SLOWER, [0.1, 0.4], "cpu", False),
        (SLOWER, [0.1, 0.4], "cuda", False),
    ],
)
def test_a_process_cost_is_limited_on_a_cpu_and_a_step_s_everywhere(ratio, costs, device, told):
    assert right(ratio, [EQUAL, EQUAL], costs, device) is told
    assert not right(ratio, [EQUAL, OFF], costs, device)


def test_too_few_pairs_for_an_interval_are_not_right():
    assert not right(Estimate(median=1.0, low=None, high=None, rounds=5), [EQUAL], [0.1], "cpu")


def test_the_ratio_is_told_before_what_takes_minutes(monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    ended = SimpleNamespace(death=None, answer=[1.0] * 6)
    stand_ins = {"claimed_machine": lambda: MACHINE, "in_child": lambda *_, **__: ended}
    for name, value in {**stand_ins, "shown_ratio": stopped}.items():
        monkeypatch.setattr(overhead, name, value)
    told = []
    with pytest.raises(KeyboardInterrupt):
        overhead.check(None, 6, 1, told.append)
    assert "by the harness / by hand: 1.0000 [1.0000, 1.0000]" in told[-1]


def test_a_death_beside_the_loop_by_hand_is_one_line(monkeypatch):
    dead = SimpleNamespace(death="killed by signal 9", answer=None)
    monkeypatch.setattr(overhead, "claimed_machine", lambda: MACHINE)
    monkeypatch.setattr(overhead, "in_child", lambda *_, **__: dead)
    with pytest.raises(StepbenchError, match="gpt-1m beside the loop by hand: killed by signal 9"):
        overhead.check(None, 6, 1, print)


@pytest.mark.parametrize("name", UNEVEN)
def test_a_plain_loop_takes_the_batches_of_the_window(name, monkeypatch):
    asked = []

    def step(workload, device, left_out):
        return lambda: asked.append(left_out)

    monkeypatch.setattr(overhead, "plain_step", step)
    plan = replace(UNEVEN_WINDOW, first_batch=PARITY_STEPS + 25)
    overhead.plain_s(name, "cpu", plan)
    assert asked == [range(PARITY_STEPS, PARITY_STEPS + 20)] * (PARITY_STEPS + 5 + 40)

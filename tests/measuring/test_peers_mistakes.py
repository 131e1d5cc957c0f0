"""What other benchmarks were seen to get wrong, each planted here and measured for real.

Beside these: unsynchronized timing (`test_probes.py`, the marks), utilization against the wrong
peak (`tests/report/test_gpu_figures.py`), a median that hides what comes every so often
(`tests/test_stats.py`).
"""

import time
from dataclasses import replace

import pytest
import torch

from stepbench.measuring.measure import measure
from stepbench.measuring.settings import Settings
from stepbench.measuring.window import WARMUP_CAP
from stepbench.measuring.window_plan import PARITY_STEPS
from stepbench.records.case import Case
from stepbench.report import tables
from stepbench.training import build as build_module
from stepbench.training.techniques import parse
from tests.synthetic import case as synthetic_case
from tests.synthetic import measurement, record, run_file

MIB = 2**20
PLANTED = 64 * MIB
OWN = "tests.training.own_workloads"


def ok(told):
    assert told.outcome.ok, (told.outcome, told.outcome.traceback)
    return told.rounds[0].case


def hold_for_a_moment():
    torch.empty(PLANTED, dtype=torch.uint8)


def test_throughput_is_that_of_the_median_process_not_a_mean_of_rates():
    """Of rates 1000/0.1, 1000/0.2 and 1000/0.8 the mean is 5,417: one slow process is an outlier,
    one fast step is not a rate."""
    processes = [measurement(steps) for steps in ([0.1] * 3, [0.3, 0.2, 0.1], [0.8] * 3)]
    base = measurement([0.2] * 3)
    file = run_file([record(synthetic_case("bf16"), [(one, base) for one in processes])])
    [_, row] = tables.as_json(file)["tables"][0]["rows"]
    assert row["figures"]["tokens_per_s"] == pytest.approx(1000 / 0.2)


def test_what_is_slow_before_the_window_is_not_in_it(measured, monkeypatch):
    real = build_module.plain_loop

    def slow_at_first(*arguments):
        loop, calls = real(*arguments), iter(range(10**6))

        def forward(batch):
            if next(calls) < PARITY_STEPS + 1:
                time.sleep(0.3)
            return loop.forward(batch)

        return replace(loop, forward=forward)

    monkeypatch.setattr(build_module, "plain_loop", slow_at_first)
    one = ok(measured("baseline"))
    assert PARITY_STEPS + 2 <= one.warmup_steps <= PARITY_STEPS + WARMUP_CAP
    assert max(one.step_s) < 0.3


@pytest.mark.parametrize("phase", ["build", "first_step", "steady_step"])
def test_each_phase_has_a_peak_of_its_own(measured, monkeypatch, phase):
    plain = ok(measured("baseline")).memory
    real = build_module.plain_loop

    def greedy(*arguments):
        if phase == "build":
            hold_for_a_moment()
        loop, calls = real(*arguments), iter(range(10**6))

        def forward(batch):
            first = next(calls) == 0
            if (phase == "first_step" and first) or (phase == "steady_step" and not first):
                hold_for_a_moment()
            return loop.forward(batch)

        return replace(loop, forward=forward)

    monkeypatch.setattr(build_module, "plain_loop", greedy)
    planted = ok(measured("baseline")).memory
    for name in ("build", "first_step", "steady_step"):
        before, after = (getattr(one, name).allocated_bytes for one in (plain, planted))
        if name == phase:
            assert PLANTED <= after <= PLANTED + before
        else:
            assert after == pytest.approx(before, rel=0.01)


@pytest.mark.parametrize("when", ["at_once", "lazily"])
def test_data_are_in_no_peak(measured, when):
    """A CPU holds them in the model's memory, a GPU does not: the ratio would be diluted here."""
    plain = ok(measured("baseline", f"{OWN}:plain")).memory
    held = ok(measured("baseline", f"{OWN}:much_data@when={when}")).memory
    for name in ("build", "first_step", "steady_step"):
        before, after = (getattr(one, name).allocated_bytes for one in (plain, held))
        assert abs(after - before) < 4096, name


def test_of_unequal_ranks_the_worst_counts(machine, monkeypatch):
    real = build_module.plain_loop

    def greedy_on_rank_1(model, optimizer, site):
        loop = real(model, optimizer, site)

        def forward(batch):
            if site.rank == 1:
                hold_for_a_moment()
                time.sleep(0.05)
            return loop.forward(batch)

        return replace(loop, forward=forward)

    monkeypatch.setattr(build_module, "plain_loop", greedy_on_rank_1)
    case = Case(workload="gpt-tiny", combination=parse("ddp"), ranks=2)
    one = ok(measure(case, Settings(rounds=1, extra_rounds=0, max_steps=3, min_steps=3), machine))
    windows = [rank.window_s for rank in one.ranks]
    peaks = [rank.memory.steady_step.allocated_bytes for rank in one.ranks]
    assert one.window_s == max(windows)
    assert peaks[1] - peaks[0] > PLANTED / 2
    assert one.memory.steady_step.allocated_bytes == peaks[1]

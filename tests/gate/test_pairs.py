"""Pairs of real processes: turns, faults injected for real, and nothing left behind."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from stepbench.errors import StepbenchError
from stepbench.measuring import pairs
from stepbench.measuring.pairs import (
    BLOCKS,
    PairedRunner,
    PairFailed,
    alternate,
    method_for,
    order_of,
)
from stepbench.measuring.probes.surroundings import HostLoad
from stepbench.measuring.window import WARMUP_CAP
from stepbench.records.measurement import DeviceState
from stepbench.records.pair import Block, Pair, lower_quartile
from stepbench.training import build as build_module
from stepbench.versions import MEASURE_VERSION
from tests.gate.conftest import QUICK, side
from tests.stranger import TRAIN
from tests.synthetic import measurement

ROOT = Path(__file__).resolve().parents[2]


def block(*seconds):
    return Block(step_s=seconds, cpu_s=tuple(one / 2 for one in seconds))


def a_pair(reference, candidate, method="ping-pong", device="cpu"):
    return Pair(
        method=method,
        order="reference first",
        device=device,
        reference=reference,
        candidate=candidate,
        stolen_share=0.0,
        foreign_cores=0.0,
        disturbances=(),
    )


def test_a_lower_quartile_by_hand():
    assert lower_quartile([5.0]) == 5.0
    assert lower_quartile([4, 1, 3, 2, 100]) == 2
    assert lower_quartile([1, 2, 3, 4]) == 1.75


def test_a_pairs_values_by_hand():
    old = (block(9, 1, 1), block(2, 2, 2), block(1, 1, 1))
    new = (block(2, 2, 9), block(2, 2, 2), block(9, math.e, math.e))
    pair = a_pair(old, new)
    assert pair.figures == ("cpu_quartile", "cpu_total", "wall_total")
    # Without first steps: quartiles of 1 and 3.75, of 2 and 2, of 1 and e; the median is of e.
    assert pair.log_ratio("cpu_quartile") == pytest.approx(1.0)
    totals = math.log((13 + 6 + 9 + 2 * math.e) / (11 + 6 + 3))
    assert pair.log_ratio("cpu_total") == pair.log_ratio("wall_total") == pytest.approx(totals)
    assert a_pair(old, new, device="cuda").figures == ("wall_total", "wall_median")
    assert a_pair(old, new, device="cuda").log_ratio("wall_median") == pytest.approx(math.log(2))
    assert a_pair(old, new, "whole processes").figures == ("wall_total",)
    assert Pair.from_json(pair.to_json()) == pair


def test_a_cost_on_few_steps_is_in_the_totals_and_in_no_quartile():
    old = (block(*[1.0] * 10),) * 7
    new = (block(*[1.0] * 9, 2.0),) * 7
    pair = a_pair(old, new)
    assert pair.log_ratio("cpu_quartile") == 0.0
    assert pair.log_ratio("cpu_total") == pair.log_ratio("wall_total") == math.log(1.1)


def test_time_in_which_others_had_the_processor_is_in_no_wall_time():
    quiet = Block(step_s=(1.0, 1.0), cpu_s=(1.0, 1.0), delay_s=(0.0, 0.0))
    crowded = Block(step_s=(3.0, 1.5), cpu_s=(1.0, 1.0), delay_s=(2.0, 0.5))
    assert a_pair((quiet,), (crowded,)).log_ratio("wall_total") == 0.0


def test_a_disturbed_pair_is_judged_by_cpu_time_alone():
    pair = replace(a_pair((block(1.0),), (block(1.0),)), disturbances=("stolen",))
    assert pair.discarded == ("wall_total",)
    assert replace(pair, device="cuda").discarded == ("wall_total", "wall_median")
    assert replace(pair, disturbances=()).discarded == ()


def test_who_begins_alternates_over_blocks_and_pairs():
    told = []
    seen = alternate(
        lambda: told.append("a") or block(1.0),
        lambda: told.append("b") or block(2.0),
        blocks=4,
        begins="candidate first",
    )
    assert "".join(told) == "baabbaab"
    assert seen == ((block(1.0),) * 4, (block(2.0),) * 4)
    assert [order_of(index)[0] for index in range(5)] == ["r", "c", "c", "r", "r"]


def test_workers_ranks_and_large_models_take_turns_as_whole_processes(machine):
    cpu = {**machine, "gpus": []}
    gpu = {**machine, "gpus": [{"memory_bytes": 1000 * 2**20}]}
    small, large = measurement(peak_bytes=400 * 2**20), measurement(peak_bytes=500 * 2**20)
    loading = replace(small, counters=replace(small.counters, loader_processes=2))
    preempted = replace(small, data_wait_s=(0.001, 0.001, 1.0))
    assert method_for(small, large, ranks=1, machine=cpu) == "ping-pong"
    assert method_for(small, small, ranks=1, machine=gpu) == "ping-pong"
    assert method_for(small, large, ranks=1, machine=gpu) == "whole processes"
    assert method_for(small, loading, ranks=1, machine=cpu) == "whole processes"
    assert method_for(small, small, ranks=2, machine=cpu) == "whole processes"
    assert method_for(small, preempted, ranks=1, machine=cpu) == "ping-pong"


@pytest.fixture
def no_orphans():
    before = set(psutil.Process().children(recursive=True))
    yield
    deadline = time.monotonic() + 60
    while left := set(psutil.Process().children(recursive=True)) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def test_both_methods_on_real_processes(monkeypatch, machine, no_orphans):
    # Warm-ups of two processes differ by less than a window, so that windows always overlap.
    steps = WARMUP_CAP + 2
    settings = replace(QUICK, max_steps=steps, min_steps=steps)
    measured = {}

    def remembered(role, *given):
        measured[role] = measured_of(role, *given)
        return measured[role]

    measured_of = pairs.measured
    monkeypatch.setattr(pairs, "measured", remembered)
    with PairedRunner(side(), side("accum2"), machine, settings) as runner:
        turns = runner.pair("ping-pong", "candidate first")
        whole = runner.pair("whole processes", "reference first")
    assert {role: one.counters.forwards for role, one in measured.items()} == {
        "reference": 1,
        "candidate": 2,
    }
    assert len(turns.reference) == len(turns.candidate) == BLOCKS
    assert len({len(one.step_s) for one in (*turns.reference, *turns.candidate)}) == 1
    assert (turns.device, turns.order) == ("cpu", "candidate first")
    timed = {
        role: dict(zip(one.batches, one.step_s, strict=True)) for role, one in measured.items()
    }
    common = sorted(timed["reference"].keys() & timed["candidate"].keys())
    assert len(common) >= 2
    for role, blocks in (("reference", whole.reference), ("candidate", whole.candidate)):
        assert [one.step_s for one in blocks] == [tuple(timed[role][batch] for batch in common)]
    for pair in (turns, whole):
        assert all(math.isfinite(pair.log_ratio(figure)) for figure in pair.figures)


@pytest.fixture
def quiet(monkeypatch):
    """Nothing happens on the host."""
    nothing = HostLoad(at_s=0.0, busy_s=0.0, stolen_s=0.0, own_s=0.0)
    monkeypatch.setattr(pairs.HostLoad, "read", lambda processes: nothing)


def test_what_disturbed_a_process_disturbs_its_pair(monkeypatch, machine, quiet):
    met = {"reference": ["other processes used the GPU"], "candidate": ["memory was short"]}
    runner = PairedRunner(side(), side(), machine)

    def process(role, plan):
        return replace(measurement([0.1], disturbances=met[role]), batches=(plan.first_batch,))

    monkeypatch.setattr(runner, "measurement", process)
    pair = runner.pair("whole processes", "candidate first")
    assert pair.disturbances == ("memory was short", "other processes used the GPU")


def test_whole_processes_are_compared_on_the_batches_that_both_have_timed(
    monkeypatch, machine, quiet
):
    timed = {
        "reference": replace(measurement([1.0, 2.0, 3.0]), batches=(7, 8, 9)),
        "candidate": replace(measurement([20.0, 30.0, 40.0]), batches=(8, 9, 10)),
    }
    runner = PairedRunner(side(), side(), machine)
    monkeypatch.setattr(runner, "measurement", timed.get)
    pair = runner.pair("whole processes", "reference first")
    assert pair.reference == (Block(step_s=(2.0, 3.0), cpu_s=(2.0, 3.0)),)
    assert pair.candidate == (Block(step_s=(20.0, 30.0), cpu_s=(20.0, 30.0)),)


def test_a_gpu_is_looked_at_while_blocks_run(monkeypatch, machine, quiet, no_orphans):
    driver = SimpleNamespace(looks=[], own=[])

    class Sampler:
        def __init__(self, gpu):
            assert gpu == 0

        def sample(self):
            driver.looks.append(time.monotonic())

        def between(self, began_s, ended_s, own):
            driver.own = {one.pid for pid in own for one in psutil.Process(pid).children(True)}
            assert all(began_s <= at <= ended_s for at in driver.looks)
            return DeviceState(
                samples=len(driver.looks),
                clock_mhz=None,
                lowest_clock_mhz=None,
                temperature_c=None,
                power_w=None,
                throttle_reasons=("thermal slowdown by hardware",),
                foreign_processes=1,
            )

    monkeypatch.setattr(pairs, "DeviceSampler", Sampler)
    with PairedRunner(side(), side(), machine, QUICK) as runner:
        assert runner.pair("ping-pong", "reference first").disturbances == ()
        runner.machine = {
            **machine,
            "gpus": [{"name": "a GPU"}],
        }  # its processes measure on the CPU
        pair = runner.pair("ping-pong", "reference first")
    assert len(driver.looks) == 2 * BLOCKS
    assert len(driver.own) >= 4  # two fork servers, and a worker each
    assert pair.disturbances == (
        "the GPU's clock was held down: thermal slowdown by hardware",
        "other processes used the GPU",
    )


def planted(monkeypatch, fault):
    """Let `fault(loop)` edit the loop of every process whose combination accumulates."""
    real = build_module.plain_loop

    def faulty(model, optimizer, site):
        loop = real(model, optimizer, site)
        return fault(loop) if site.plan.micro_batches > 1 else loop

    monkeypatch.setattr(build_module, "plain_loop", faulty)


def dying(loop):
    left = iter(range(20))  # beyond the warm-up of at most 15 steps, in a block

    def update():
        next(left, None) is not None or os.kill(os.getpid(), signal.SIGKILL)
        loop.update()

    return replace(loop, update=update)


@pytest.mark.parametrize(
    ("fault", "deadline_s", "told"),
    [
        (dying, 600, "killed by SIGKILL"),
        (lambda loop: replace(loop, update=lambda: 1 / 0), 600, "ZeroDivisionError"),
        (lambda loop: replace(loop, update=lambda: time.sleep(999)), 3, "deadline of 3 s"),
    ],
)
def test_a_side_that_ends_is_told_by_its_role(
    monkeypatch, machine, no_orphans, fault, deadline_s, told
):
    planted(monkeypatch, fault)
    with PairedRunner(
        side(), side("accum2"), machine, replace(QUICK, deadline_s=deadline_s)
    ) as runner:
        with pytest.raises(PairFailed, match=told) as failed:
            runner.pair("ping-pong", "reference first")
        assert (failed.value.role, failed.value.outcome.kind) == ("candidate", "failed")
        runner.settings = QUICK
        assert runner.measurement("reference").counters.forwards == 1  # the fork servers live on


def test_a_fork_server_that_dies_is_a_failure_of_its_side(machine, no_orphans):
    before = set(psutil.Process().children())
    with PairedRunner(side(), side(), machine, QUICK) as runner:
        for server in set(psutil.Process().children()) - before:
            server.kill()
        with pytest.raises(PairFailed, match="fork server died"):
            runner.pair("ping-pong", "reference first")


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/train.py").write_text(TRAIN)
    return tmp_path


def test_two_trees_are_two_codes(machine, tree, tmp_path, no_orphans):
    other = shutil.copytree(tree, tmp_path / "other")
    (other / "src/train.py").write_text(TRAIN.replace("EXTRA = 0", "EXTRA = 3"))
    sides = [side(workload="train:workload", tree=str(one)) for one in (tree, other)]
    with PairedRunner(*sides, machine, QUICK) as runner:
        old, new = (runner.measurement(role) for role in ("reference", "candidate"))
        assert runner.pair("ping-pong", "reference first").method == "ping-pong"
        assert new.counters.operators["aten.mm"] - old.counters.operators["aten.mm"] == 3
    assert "train" not in sys.modules


def test_an_installed_copy_is_no_trees_code(machine, tree, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tree / "src"), prepend=os.pathsep)
    empty = tree / "empty"
    empty.mkdir()
    one = side(workload="train:workload", tree=str(empty))
    with (
        PairedRunner(one, one, machine, QUICK) as runner,
        pytest.raises(PairFailed, match="came from"),
    ):
        runner.measurement("reference")


def test_another_ruler_is_refused_before_anything_is_measured(machine, tmp_path):
    shutil.copytree(ROOT / "harness", tmp_path / "harness")
    core = tmp_path / "harness/stepbench/versions.py"
    ruler = re.sub(r"MEASURE_VERSION = \d+", "MEASURE_VERSION = 99", core.read_text())
    core.write_text(ruler)
    with (
        pytest.raises(StepbenchError, match=f"version: 99 .* against {MEASURE_VERSION} here"),
        PairedRunner(side(), side(tree=str(tmp_path)), machine, QUICK),
    ):
        pass


def test_a_tree_that_does_not_start_is_told_in_one_line(machine, tmp_path):
    (tmp_path / "harness/stepbench").mkdir(parents=True)
    (tmp_path / "harness/stepbench/__init__.py").touch()
    with (
        pytest.raises(StepbenchError, match="does not start"),
        PairedRunner(side(), side(tree=str(tmp_path)), machine, QUICK),
    ):
        pass


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_stops_the_parent_stops_everything(how, tmp_path):
    program = """
from dataclasses import replace
from stepbench.records.case import Case
from stepbench.measuring.pairs import PairedRunner
from stepbench.measuring.sweep import this_machine
from stepbench.training import build
from stepbench.records.pair import Side
import time
real = build.plain_loop
build.plain_loop = lambda *given: replace(real(*given), update=lambda: time.sleep(999))
one = Side(case=Case(workload="gpt-tiny"))
with PairedRunner(one, one, this_machine()) as runner:
    print("ready", flush=True)
    runner.pair("ping-pong", "reference first")
"""
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    assert running.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 120
    while len(children := psutil.Process(running.pid).children(recursive=True)) < 4:
        assert time.monotonic() < deadline, children
        time.sleep(0.05)
    running.send_signal(how)
    running.wait(60)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive

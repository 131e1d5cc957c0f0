"""Faults in one rank of several, injected for real: the guilty one is named, nothing is left."""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace

import psutil
import pytest

from stepbench.measuring import subject, worker
from stepbench.measuring.measure import measure
from stepbench.measuring.process import Ended
from stepbench.measuring.ranks import guilty
from stepbench.measuring.settings import Settings
from stepbench.records.case import Case
from stepbench.records.outcome import Outcome
from stepbench.training import build as build_module
from stepbench.training.techniques import parallel, parse
from tests.synthetic import measurement

GUILTY = 1
# None of these cases waits for this deadline.
SETTINGS = Settings(rounds=1, extra_rounds=0, max_steps=2, min_steps=2, deadline_s=120)
# A case that hangs does. On a busy machine it may end before the fault has happened: then a longer
# one is tried, until all ranks had time to run into the fault.
DEADLINES_S = (3, 15, 75)
SETTLED_S = 1.0
# What it takes to ask where everybody stands, and to reap.
TELL_S = 60
HUNG_AT_S = multiprocessing.Value("d", 0.0)  # by the clock that all processes share


def hang():
    HUNG_AT_S.value = time.monotonic()
    time.sleep(1000)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def raise_it():
    raise ValueError("this rank is broken")


FAULTS = {
    raise_it: "rank 1: ValueError: this rank is broken (test_rank_faults.py:",
    die: "rank 1: the process was killed by SIGKILL",
}
HUNG = "no answer within its deadline of {deadline_s} s; it was killed in hang (test_rank_faults"


@pytest.fixture
def outcome_of(machine):
    """The outcome of a case, in time, with as many processes after it as before."""

    def run(name, ranks=2, settings=SETTINGS, limit_s=SETTINGS.deadline_s) -> Outcome:
        case = Case(workload="gpt-tiny", combination=parse(name), ranks=ranks)
        before = psutil.Process().children(recursive=True)
        began = time.monotonic()
        outcome = measure(case, settings, machine).outcome
        assert time.monotonic() - began < limit_s
        assert psutil.Process().children(recursive=True) == before
        return outcome

    return run


@pytest.fixture
def hanging(outcome_of):
    """The outcome of a case that hangs, and its deadline."""

    def run(name) -> tuple[Outcome, int]:
        for deadline_s in DEADLINES_S:
            HUNG_AT_S.value = math.inf
            settings = replace(SETTINGS, deadline_s=deadline_s)
            began_s = time.monotonic()
            outcome = outcome_of(name, settings=settings, limit_s=deadline_s + TELL_S)
            if HUNG_AT_S.value + SETTLED_S < began_s + deadline_s:
                return outcome, deadline_s
        raise AssertionError(f"the fault never happened: {outcome}")

    return run


def planted(monkeypatch, phase, fault, after_steps=2):
    """Let `fault` happen in a phase of a step of the guilty rank."""
    real = build_module.plain_loop

    def faulty(model, optimizer, site):
        loop = real(model, optimizer, site)
        if site.rank != GUILTY or site.replicas == 1:
            return loop
        function, calls = getattr(loop, phase), []

        def broken(*arguments):
            calls.append(phase)
            if len(calls) > after_steps:
                fault()
            return function(*arguments)

        return replace(loop, **{phase: broken})

    monkeypatch.setattr(build_module, "plain_loop", faulty)


PHASES = pytest.mark.parametrize(
    ("name", "phase"),
    [("ddp", "forward"), ("ddp", "backward"), ("ddp", "update"), ("fsdp2", "backward")],
)


@pytest.mark.parametrize("fault", FAULTS)
@PHASES
def test_the_guilty_rank_is_named(monkeypatch, outcome_of, name, fault, phase):
    planted(monkeypatch, phase, fault)
    outcome = outcome_of(name)
    assert outcome.kind == "failed"
    assert outcome.reason.startswith(FAULTS[fault]), outcome.reason
    if fault is not die:
        assert fault.__name__ in outcome.traceback


@PHASES
def test_a_rank_that_hangs_is_named(monkeypatch, hanging, name, phase):
    planted(monkeypatch, phase, hang)
    outcome, deadline_s = hanging(name)
    assert outcome.kind == "failed"
    assert outcome.reason.startswith("rank 1: " + HUNG.format(deadline_s=deadline_s))
    assert "hang" in outcome.traceback


def test_rank_0_may_be_guilty_too(monkeypatch, hanging):
    monkeypatch.setattr(sys.modules[__name__], "GUILTY", 0)
    planted(monkeypatch, "backward", hang)
    outcome, deadline_s = hanging("ddp")
    assert outcome.reason.startswith("rank 0: " + HUNG.format(deadline_s=deadline_s))


def test_one_of_four(monkeypatch, outcome_of):
    planted(monkeypatch, "backward", raise_it)
    assert outcome_of("zero1", 4).reason.startswith(FAULTS[raise_it])


def test_a_fault_while_building(monkeypatch, outcome_of):
    real = subject.build

    def faulty(*arguments, rank, **options):
        if rank == GUILTY:
            raise_it()
        return real(*arguments, rank=rank, **options)

    monkeypatch.setattr(subject, "build", faulty)
    assert outcome_of("fsdp2").reason.startswith(FAULTS[raise_it])


def test_a_rank_that_never_arrives(monkeypatch, hanging):
    real = subject.Subject.join

    def join(self, deadline_s):
        if self.place.rank == GUILTY:
            hang()
        real(self, deadline_s)

    monkeypatch.setattr(subject.Subject, "join", join)
    outcome, deadline_s = hanging("ddp")
    assert outcome.reason.startswith("rank 1: " + HUNG.format(deadline_s=deadline_s))


def test_a_rank_with_fewer_batches(monkeypatch, outcome_of):
    class Short(subject.Batches):
        def __init__(self, workload, plan, *, part, **options):
            super().__init__(workload, plan, part=part, **options)
            self.rank = part[0]

        def __next__(self):
            if self.received == 3 and self.rank == GUILTY:
                raise StopIteration
            return super().__next__()

    monkeypatch.setattr(subject, "Batches", Short)
    told = "rank 1: no batch was left for step 4: an epoch must never end early"
    assert outcome_of("ddp").reason == told


def test_a_rank_that_leaves_before_the_others(monkeypatch, hanging):
    real = worker.Measured._time

    def leave(self, *arguments):
        if self.place.rank == GUILTY:
            raise Left
        return real(self, *arguments)

    class Left(Exception):
        pass

    def measure_or_leave(self, *arguments):
        try:
            return measure_all(self, *arguments)
        except Left:
            HUNG_AT_S.value = time.monotonic()
            self.window_at = (0.0, 1.0)
            return measurement(), None

    measure_all = worker.Measured.measure
    monkeypatch.setattr(worker.Measured, "measure", measure_or_leave)
    monkeypatch.setattr(worker.Measured, "_time", leave)
    outcome, deadline_s = hanging("ddp")
    assert outcome.kind == "failed"
    told = f"rank 1 left before rank 0 had done: no answer within its deadline of {deadline_s} s"
    assert outcome.reason.startswith(told)


def test_the_next_case_runs(monkeypatch, outcome_of):
    with monkeypatch.context() as patched:
        planted(patched, "backward", die)
        assert not outcome_of("ddp").ok
    assert outcome_of("ddp").ok


def test_ddp_without_its_reduction(monkeypatch, outcome_of):
    class Silent(parallel.DistributedDataParallel):
        def forward(self, *arguments, **named):
            with self.no_sync():
                return super().forward(*arguments, **named)

    monkeypatch.setattr(parallel, "DistributedDataParallel", Silent)
    outcome = outcome_of("ddp")
    assert outcome.kind == "invalid"
    told = "all_reduce moved 0 bytes in a step, not all 133760 of what is trained"
    assert outcome.reason == f"rank 0: ddp was not active: {told}"


def test_a_reduction_of_something_else(monkeypatch, outcome_of):
    """As many bytes go round, and still every rank trains a model of its own."""

    class Astray(parallel.DistributedDataParallel):
        def forward(self, *arguments, **named):
            parallel.torch.distributed.all_reduce(parallel.torch.zeros(133760 // 4))
            with self.no_sync():
                return super().forward(*arguments, **named)

    monkeypatch.setattr(parallel, "DistributedDataParallel", Astray)
    outcome = outcome_of("ddp")
    assert outcome.kind == "invalid"
    assert "their gradients were not averaged" in outcome.reason


def test_a_reduction_with_every_micro_batch(monkeypatch, outcome_of):
    monkeypatch.setattr(
        parallel.DistributedDataParallel, "no_sync", lambda self: contextlib.nullcontext()
    )
    outcome = outcome_of("accum4+ddp")
    assert outcome.kind == "invalid"
    told = "gradients were reduced with every micro-batch, not once a step"
    assert outcome.reason == f"rank 0: ddp was not active: {told}"


def test_zero2_that_reshards(monkeypatch, outcome_of):
    real = parallel.fully_shard
    monkeypatch.setattr(
        parallel,
        "fully_shard",
        lambda module, reshard_after_forward, **rest: real(
            module, reshard_after_forward=True, **rest
        ),
    )
    outcome = outcome_of("zero2")
    assert outcome.kind == "invalid"
    assert "6 all-gathers ran in a step, not 2 to 3" in outcome.reason


@pytest.mark.parametrize(
    ("name", "left_out", "told"),
    [
        ("ddp-bucket-view", "gradient_as_bucket_view", "gradients lay beside DDP's buckets"),
        ("ddp-static", "static_graph", "its graph was not taken for static"),
    ],
)
def test_an_option_that_never_reached_ddp(monkeypatch, outcome_of, name, left_out, told):
    real = parallel.DistributedDataParallel

    class Without(real):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **{k: v for k, v in named.items() if k != left_out})

    monkeypatch.setattr(parallel, "DistributedDataParallel", Without)
    outcome = outcome_of(name)
    assert outcome.kind == "invalid"
    assert told in outcome.reason


def test_gradients_that_are_summed(monkeypatch, outcome_of):
    def summing(state, bucket):
        return (
            parallel.torch.distributed.all_reduce(bucket.buffer(), async_op=True)
            .get_future()
            .then(lambda done: done.value()[0])
        )

    class Summed(parallel.DistributedDataParallel):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.register_comm_hook(None, summing)

    monkeypatch.setattr(parallel, "DistributedDataParallel", Summed)
    outcome = outcome_of("ddp")
    assert outcome.kind == "invalid"
    assert "differs from the baseline's by 1.0e+00" in outcome.reason


def _whole(module, **options):
    """Does nothing but answer to what FSDP2's modules answer to."""
    for name in (
        "set_requires_gradient_sync",
        "set_is_last_backward",
        "set_reshard_after_backward",
    ):
        setattr(type(module), name, lambda self, value: None)


LEFT_OUT = {
    "ZeroRedundancyOptimizer": lambda parameters, optimizer_class: optimizer_class(
        [{"params": list(parameters)}]
    ),
    "fully_shard": _whole,
}


@pytest.mark.parametrize(
    ("name", "what", "told"),
    [
        ("zero1", "ZeroRedundancyOptimizer", "broadcast moved 0 bytes in a step"),
        ("zero2", "fully_shard", "no parameter was sharded"),
        ("fsdp2", "fully_shard", "no parameter was sharded"),
    ],
)
def test_sharding_that_is_left_out(monkeypatch, outcome_of, name, what, told):
    monkeypatch.setattr(parallel, what, LEFT_OUT[what])
    monkeypatch.setattr(parallel, "FSDPModule", parallel.nn.Module)
    outcome = outcome_of(name)
    assert outcome.kind == "invalid"
    assert outcome.reason.startswith(f"rank 0: {name} was not active: {told}")


def said(death=None, outcome=None, stack=None, traceback=None):
    answer = {"outcome": outcome.to_json()} if outcome else None
    if not death and not outcome:
        answer = {"measurement": {}}
    return Ended(answer=answer, death=death, wall_s=1.0, stack=stack, traceback=traceback)


LEFT = said(
    outcome=Outcome(kind="failed", reason="RuntimeError: Connection closed by peer [127.0.0.1]")
)
KILLED = said("the process was killed by SIGKILL")
WAITING = said("late", stack=("wait (torch/distributed/distributed_c10d.py:9)",))
STANDING = said("late", stack=("loads (json.py:3)", "wait (torch/distributed/x.py:9)"))
SHORT = said(outcome=Outcome(kind="oom", reason="out of memory", phase="forward"))


# As gloo ends the process that was sent more than it asked for; what it then says is its peers'.
UNLIKE = said(
    "the process was killed by SIGABRT (its last line: what(): [enforce fail at "
    "gloo/transport/tcp/pair.cc:456] op.preamble.length <= op.nbytes. 46912 vs 8.)"
)
RULER = said("late", stack=("_observed_step (stepbench/measuring/probes/parity.py:80)",))


@pytest.mark.parametrize(
    ("ended", "rank"),
    [
        ([RULER, STANDING], 1),
        ([LEFT, KILLED, WAITING], 1),
        ([LEFT, WAITING, STANDING], 2),
        ([WAITING, KILLED, SHORT], 2),
        ([KILLED, SHORT, LEFT], 1),
        ([WAITING, LEFT], 1),
        ([LEFT, UNLIKE], 1),
        ([WAITING, WAITING], 0),
    ],
)
def test_who_is_to_blame(ended, rank):
    assert guilty(ended).reason.startswith(f"rank {rank}: ")


def test_who_left_the_others_waiting():
    assert guilty([WAITING, said()]).reason.startswith("rank 1 left before rank 0 had done: ")


def test_ranks_that_wait_for_each_other_are_told_what_to_choose():
    told = ": all ranks wait; if a block runs on some only, choose ddp-unused"
    assert guilty([WAITING, WAITING]).reason == f"rank 0: late{told}"
    assert told not in guilty([WAITING, said()]).reason
    assert told not in guilty([WAITING]).reason


def test_a_group_is_out_of_memory_as_its_rank_is():
    outcome = guilty([LEFT, SHORT])
    assert (outcome.kind, outcome.phase) == ("oom", "forward")

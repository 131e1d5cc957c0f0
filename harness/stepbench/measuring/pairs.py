"""Pairs of fresh processes, both sides beside each other, so that both meet the same machine.

*Interleaved pairs*: both processes are alive and built, and take turns in blocks of steps under
this process' command, at the same steps on the same batches. On a busy 2-core machine that cut the
spread of a pair from 13.9% (whole processes) to 2.6%. More pairs sharpen the estimate; more steps a
pair hardly do. *Whole processes* alternate A B B A where pairs cannot be interleaved
(`method_for`).

The processes of one fork server share one layout of addresses, which may be good or bad luck for
all of them. A paired runner therefore gives two pairs, and then new fork servers are started
(`gate.comparison`).
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing import connection
from typing import Any, Literal

from stepbench.measuring.fork_server import ForkServer
from stepbench.measuring.probes.device import DeviceSampler, disturbances
from stepbench.measuring.probes.surroundings import HostLoad
from stepbench.measuring.settings import Settings
from stepbench.measuring.window import STEADY, WARMUP_CAP
from stepbench.measuring.window_plan import WARMUP_FLOOR, WindowPlan, by_one_plan, first_plan
from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Measurement
from stepbench.records.outcome import Outcome
from stepbench.records.pair import INTERLEAVED, WHOLE, Block, Method, Order, Pair, Side
from stepbench.stats.measures import counted_steps
from stepbench.stats.noise import first_begins, tolerated_cores

# Blocks a side in an interleaved pair. A side whose block follows its own is warm, by 3% to 6% of
# CPU time; with an odd number of blocks both sides are that equally often.
BLOCKS = 7
# A block lasts about this long, in at least so many and at most so many steps.
BLOCK_S, LEAST_STEPS, MOST_STEPS = 0.15, 4, 33
# Both processes' memory at once, with room for what the device keeps for itself.
DEVICE_SHARE = 0.45

Role = Literal["reference", "candidate"]
# What a fork server has beyond the deadline of a process, to kill it and tell its end.
TELL_S = 30.0


class PairFailed(Exception):
    """One side gave no number; `outcome` says why, `role` which."""

    def __init__(self, role: Role, outcome: Outcome) -> None:
        super().__init__(f"{role}: {outcome}")
        self.role: Role = role
        self.outcome = outcome


def alternate(
    reference: Callable[[], Block], candidate: Callable[[], Block], *, blocks: int, begins: Order
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """Let both time `blocks` blocks in turns, `begins` first and then each first in turn."""
    ours, theirs = [], []
    for index in range(blocks):
        if (begins == "reference first") == (index % 2 == 0):
            ours.append(reference())
            theirs.append(candidate())
        else:
            theirs.append(candidate())
            ours.append(reference())
    return tuple(ours), tuple(theirs)


def method_for(
    reference: Measurement, candidate: Measurement, *, ranks: int, machine: Mapping[str, Any]
) -> Method:
    """Interleaved for one process without loader workers; on a GPU only where both fit there.

    Workers would load for one side while the other is timed, and ranks would have to wait together.
    The case decides and no measured time does: noise must not choose the method.
    """
    both = (reference, candidate)
    if ranks > 1 or any(one.counters.loader_processes or one.counters.group_ranks for one in both):
        return WHOLE
    if device_type(machine) == "cuda":
        room_bytes = DEVICE_SHARE * min(gpu["memory_bytes"] for gpu in machine["gpus"])
        if any(_device_bytes(one) > room_bytes for one in both):
            return WHOLE
    return INTERLEAVED


def _device_bytes(one: Measurement) -> int:
    peaks = (one.memory.build, one.memory.first_step, one.memory.steady_step)
    return max(peak.process_bytes or peak.reserved_bytes or peak.allocated_bytes for peak in peaks)


class PairedRunner:
    """Both sides' fork servers, and pairs of fresh processes from them; a context that ends all.

    `begins` is the side whose fork server is started first.

    Raises:
        StepbenchError: a side's code does not start, or has another measurement version.
    """

    def __init__(
        self,
        reference: Side,
        candidate: Side,
        machine: Mapping[str, Any],
        settings: Settings | None = None,
        begins: Order = "reference first",
    ) -> None:
        self.machine, self.settings = machine, settings or Settings()
        sides: dict[Role, Side] = {"reference": reference, "candidate": candidate}
        self._sides = {role: sides[role] for role in _roles(begins)}
        self._stack = ExitStack()
        self._servers: dict[Role, ForkServer] = {}

    def __enter__(self) -> PairedRunner:
        with ExitStack() as stack:  # ends what has started where the rest does not
            for role, side in self._sides.items():
                self._servers[role] = ForkServer(side.tree, self.machine)
                stack.callback(self._servers[role].close)
            for server in self._servers.values():  # both import at once
                server.__enter__()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def turn_to(self, reference: Case, candidate: Case) -> None:
        """Pair other cases of the same two trees from now on."""
        for role, case in zip(_roles("reference first"), (reference, candidate), strict=True):
            self._sides[role] = replace(self._sides[role], case=case)

    def measurement(self, role: Role, plan: WindowPlan | None = None) -> Measurement:
        """What one fresh process of a side measured: time, memory, counters.

        Raises:
            PairFailed: it gave no number, or one that would be wrong.
        """
        return measured(role, self._servers[role], self._sides[role].case, self.settings, plan)

    def pair(self, method: Method, order: Order) -> Pair:
        """Measure one pair.

        Raises:
            PairFailed: one side gave no number.
        """
        if method == INTERLEAVED:
            return self._interleaved(order)
        before = HostLoad.read([os.getpid()])
        both = self._by_one_plan(*_roles(order))
        blocks = {role: (_same_batches(one, both.values()),) for role, one in both.items()}
        loaders = max(one.counters.loader_processes for one in both.values())
        busy = loaders + max(self._busy(side.case) for side in self._sides.values())
        met = [line for one in both.values() for line in one.disturbances]
        return self._measured(WHOLE, order, blocks, before, busy, met)

    def _by_one_plan(self, first: Role, second: Role) -> dict[Role, Measurement]:
        """A fresh process of each side; both time the same batches equally warm."""
        plans = [first_plan(side.case, self.settings) for side in self._sides.values()]
        plan = max(plans, key=lambda one: one.first_batch)  # of who loads ahead more
        one, other = by_one_plan(
            lambda plan: self.measurement(first, plan),
            lambda plan: self.measurement(second, plan),
            plan,
        )
        return {first: one, second: other}

    def _worker(self, role: Role) -> _PairedWorker:
        return _PairedWorker(role, self._sides[role].case, self._servers[role], self.settings)

    def _interleaved(self, order: Order) -> Pair:
        samplers = [DeviceSampler(0)] if device_type(self.machine) == "cuda" else []
        with ExitStack() as stack:
            # Who is there first gets the better memory: that too is taken in turns.
            workers = {role: stack.enter_context(self._worker(role)) for role in _roles(order)}
            steps = min(MOST_STEPS, max(LEAST_STEPS, round(BLOCK_S / _warm_up(workers))))
            before, began_s = HostLoad.read([os.getpid()]), time.monotonic()
            ours, theirs = alternate(
                lambda: workers["reference"].block(steps, samplers),
                lambda: workers["candidate"].block(steps, samplers),
                blocks=BLOCKS,
                begins=order,
            )
            blocks: dict[Role, tuple[Block, ...]] = {"reference": ours, "candidate": theirs}
            # Both workers are below this process, as long as they live.
            states = [one.between(began_s, time.monotonic(), [os.getpid()]) for one in samplers]
            met = [line for state in states for line in disturbances(state)]
            busy = max(self._busy(side.case) for side in self._sides.values())
            return self._measured(INTERLEAVED, order, blocks, before, busy, met)

    def _busy(self, case: Case) -> int:
        """Processors that a side keeps busy while it is timed."""
        return case.ranks * self.settings.threads_of(case)

    def _measured(
        self,
        method: Method,
        order: Order,
        blocks: Mapping[Role, tuple[Block, ...]],
        before: HostLoad,
        busy: int,
        met: Iterable[str],
    ) -> Pair:
        """The pair, disturbed by what its processes met and by what happened since `before`.

        Where the time that others took is known for each step, they disturb nothing.
        """
        after = HostLoad.read([os.getpid()])
        stolen, foreign = before.shares(after)
        known = all(block.delay_s for both in blocks.values() for block in both)
        tolerated = math.inf if known else tolerated_cores(busy)
        return Pair(
            method=method,
            order=order,
            device="cuda" if device_type(self.machine) == "cuda" else "cpu",
            reference=blocks["reference"],
            candidate=blocks["candidate"],
            stolen_share=stolen,
            foreign_cores=foreign,
            disturbances=tuple(dict.fromkeys([*met, *before.disturbances(after, tolerated)])),
        )


def _warm_up(workers: Mapping[Role, _PairedWorker]) -> float:
    """Run equally many steps on both sides in turn, until both are steady; a warm step's seconds.

    A side is steady when a step is no slower than its fastest so far.
    """
    fastest_s = dict.fromkeys(workers, math.inf)
    for index in range(WARMUP_CAP):
        took_s = {role: worker.block(1, ()).step_s[0] for role, worker in workers.items()}
        steady = all(took_s[role] <= STEADY * fastest_s[role] for role in workers)
        fastest_s = {role: min(fastest_s[role], took_s[role]) for role in workers}
        if steady and index + 1 >= WARMUP_FLOOR:
            break
    return max(fastest_s.values())


def _same_batches(one: Measurement, both: Iterable[Measurement]) -> Block:
    """The steps of a process whose batches both sides have timed."""
    steps = counted_steps(one, *both)
    return Block(
        step_s=tuple(one.step_s[index] for index in steps),
        cpu_s=tuple(one.cpu_s[index] for index in steps),
    )


def measured(
    role: Role,
    server: ForkServer,
    case: Case,
    settings: Settings,
    plan: WindowPlan | None = None,
) -> Measurement:
    """What one fresh process of a fork server measured of a case; `role` is for what goes wrong.

    Raises:
        PairFailed: it gave no number, or one that would be wrong.
    """
    server.begin("measure", case, settings, plan=plan)
    return Measurement.from_json(_answer(role, server, settings)["measurement"])


def order_of(index: int) -> Order:
    """Who begins the pair of that index: A B B A, and again."""
    return "reference first" if first_begins(index) else "candidate first"


def _roles(order: Order) -> tuple[Role, Role]:
    return ("reference", "candidate") if order == "reference first" else ("candidate", "reference")


class _PairedWorker:
    """One side's process of an interleaved pair, at the other end of a socket."""

    def __init__(self, role: Role, case: Case, server: ForkServer, settings: Settings) -> None:
        self._role, self._server, self._settings = role, server, settings
        self._gone = False
        ours, theirs = socket.socketpair()
        self._channel = connection.Connection(ours.detach())
        with theirs:
            server.begin("play", case, settings, theirs.fileno())

    def __enter__(self) -> _PairedWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._channel.close()
        # Whatever else ends this (Ctrl-C) ends the runner and its fork servers.
        if not self._gone and kind in (None, PairFailed):
            with suppress(PairFailed):  # it has given all that it was asked for
                _answer(self._role, self._server, self._settings)

    def block(self, steps: int, samplers: Iterable[DeviceSampler]) -> Block:
        """Have it time a block, and look at its device meanwhile."""
        with suppress(OSError):  # it died: heard next
            self._channel.send_bytes(json.dumps(steps).encode())
        for sampler in samplers:
            sampler.sample()
        return Block.from_json(self._heard())

    def _heard(self) -> dict[str, Any]:
        """Its next message; PairFailed where it ended instead, which its fork server tells."""
        patience_s = self._settings.deadline_s + TELL_S
        with suppress(EOFError, OSError):
            if self._channel in connection.wait([self._channel, self._server.control], patience_s):
                return dict(json.loads(self._channel.recv_bytes()))
        self._gone = True
        _answer(self._role, self._server, self._settings)
        raise PairFailed(self._role, Outcome(kind="failed", reason="its process ended too early"))


def _answer(role: Role, server: ForkServer, settings: Settings) -> dict[str, Any]:
    ended = server.ended(settings.deadline_s + TELL_S)
    if ended.death is not None:
        raise PairFailed(role, Outcome(kind="failed", reason=ended.death))
    if "outcome" in ended.answer:
        raise PairFailed(role, Outcome.from_json(ended.answer["outcome"]))
    return dict(ended.answer)

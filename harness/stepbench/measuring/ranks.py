"""A group of ranks: joining it, agreeing within it, and making one answer of theirs.

Each rank is a fresh process that measures the same case. What they must do alike (how long to warm
up, how many steps to time) they agree on between timed steps.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from stepbench.measuring.outcomes import in_known_words
from stepbench.measuring.probes.device import disturbances
from stepbench.measuring.process import Ended
from stepbench.records.evidence import Evidence
from stepbench.records.jsonable import Jsonable
from stepbench.records.measurement import (
    Communication,
    DeviceState,
    Measurement,
    Memory,
    Peak,
    Rank,
)
from stepbench.records.outcome import Outcome
from stepbench.stats.measures import relative_difference

# Beyond the deadline of the processes: it is their parent who ends a hanging group.
PATIENCE_S = 60.0
# Gradients that were averaged are one and the same; each rank adds up its norm by itself.
SAME_NORM = 1e-4
# How torch's backends tell of a peer that has left.
PEER_LEFT = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "gloo/transport",
    "ncclRemoteError",
    "NCCL communicator was aborted",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Jsonable):
    """Where a process stands in its case: which rank of how many, and where they meet.

    They meet at a file (ranks of one host), or under a prefix at a TCP store; `device` is the
    index of the rank's GPU on its host. Without a meeting place it is alone.
    """

    rank: int = 0
    ranks: int = 1
    device: int = 0
    file: str | None = None
    host: str | None = None
    port: int = 0
    prefix: str = ""

    @property
    def meets(self) -> bool:
        """Whether there is a group to join."""
        return self.file is not None or self.host is not None

    def store(self) -> Store:
        """What the group meets at."""
        if self.file is not None:
            return FileStore(self.file, self.ranks)
        assert self.host is not None
        return PrefixStore(self.prefix, TCPStore(self.host, self.port, is_master=False))


class Group:
    """The ranks of a case as one of them sees them; alone, it agrees with itself.

    Attributes:
        mesh: all ranks in a row; None where there is no process group.
        backend: what carries collectives; gloo too where tensors on the host need any.
        hosts: how many hosts the ranks are on.
        host_processes: the ranks on this host, this process among them.
    """

    def __init__(
        self, place: Place, device: torch.device, deadline_s: float, *, host_tensors: bool
    ) -> None:
        self.place, self.device = place, device
        self.mesh: DeviceMesh | None = None
        self.backend: str | None = None
        self.hosts, self.host_processes = 1, [os.getpid()]
        if not place.meets:
            return
        if place.file is not None:  # one host: its own name need not lead to it
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        on_device = "cpu:gloo,cuda:nccl" if host_tensors else "nccl"
        self.backend = on_device if device.type == "cuda" else "gloo"
        store = place.store()
        dist.init_process_group(
            self.backend,
            store=store,
            rank=place.rank,
            world_size=place.ranks,
            timeout=timedelta(seconds=deadline_s + PATIENCE_S),
            device_id=device if device.type == "cuda" else None,
        )
        self.mesh = init_device_mesh(device.type, (place.ranks,))
        self._get_acquainted(store)

    def _get_acquainted(self, store: Store) -> None:
        ranks = range(self.place.ranks)
        mine = [socket.gethostname(), os.getpid()]
        store.set(f"process/{self.place.rank}", json.dumps(mine))
        told = [json.loads(store.get(f"process/{rank}")) for rank in ranks]
        self.hosts = len({host for host, _ in told})
        self.host_processes = [pid for host, pid in told if host == mine[0]]

    def worst(self, value: float) -> float:
        """The largest of the ranks' values; all must ask."""
        if self.mesh is None:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return float(told)

    def mean(self, value: float) -> float:
        """The mean of the ranks' values; all must ask."""
        if self.mesh is None:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(told)
        return float(told) / self.place.ranks


def merged(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One answer of `worker.measure_case` from those of all ranks, each with a measurement."""
    each = [_with_device(answer) for answer in answers]
    if len(each) == 1:
        return {"measurement": each[0].to_json(), "objection": answers[0]["objection"]}
    if reason := _unlike(each):
        return {"outcome": Outcome(kind="failed", reason=reason).to_json()}
    objections = (
        f"rank {rank}: {answer['objection']}"
        for rank, answer in enumerate(answers)
        if answer["objection"]
    )
    objection = next(objections, None) or _unsynchronized(each)
    return {"measurement": _one(each).to_json(), "objection": objection}


def _with_device(answer: Mapping[str, Any]) -> Measurement:
    """A rank's measurement, what was seen of its GPU from outside put in."""
    measurement = Measurement.from_json(answer["measurement"])
    device = DeviceState.from_json(answer["device"]) if answer.get("device") else None
    told = [*measurement.disturbances, *disturbances(device)]
    if retries := measurement.allocation_retries:
        told.append(f"the allocator was out of memory and tried again ({retries} times)")
    return replace(measurement, device=device, disturbances=tuple(told))


def _unlike(each: Sequence[Measurement]) -> str | None:
    """What the ranks' environments differ in, which must be nothing."""
    for rank, measurement in enumerate(each):
        for key, value in measurement.environment.items():
            if value != (first := each[0].environment.get(key)):
                return f"rank {rank} has {key} {value}, rank 0 has {first}"
    return None


def _unsynchronized(each: Sequence[Measurement]) -> str | None:
    for rank, measurement in enumerate(each):
        difference = relative_difference(each[0].grad_norms, measurement.grad_norms)
        if difference > SAME_NORM:
            return (
                f"gradient norms of rank {rank} and rank 0 differ by {difference:.1e}: their "
                "gradients were not averaged"
            )
    return None


def _one(each: Sequence[Measurement]) -> Measurement:
    slowest = max(each, key=lambda one: one.window_s)
    told = [one.disturbances for one in each]
    return replace(
        slowest,
        tokens=sum(one.tokens for one in each),
        step_tokens=tuple(map(sum, zip(*(one.step_tokens for one in each), strict=True))),
        steady=all(one.steady for one in each),
        build_s=max(one.build_s for one in each),
        losses=tuple(map(_mean, zip(*(one.losses for one in each), strict=True))),
        grad_norms=each[0].grad_norms,
        descents=each[0].descents,
        memory=_largest([one.memory for one in each]),
        counters=each[0].counters,
        evidence=_agreed([one.evidence for one in each if one.evidence]),
        disturbances=tuple(dict.fromkeys(line for lines in told for line in lines)),
        host_bytes=sum(one.host_bytes or 0 for one in each),
        growth_bytes_per_step=max(one.growth_bytes_per_step or 0.0 for one in each),
        communication=_mean_communication([one.communication for one in each]),
        ranks=tuple(
            Rank(
                window_s=one.window_s,
                memory=one.memory,
                collective_calls=one.counters.collective_calls,
                collective_bytes=one.counters.collective_bytes,
                communication=one.communication,
                device=one.device,
            )
            for one in each
        ),
    )


def _agreed(each: Sequence[Evidence]) -> Evidence:
    """Of shards, a tensor has changed where any rank's part of it has."""
    return replace(
        each[0],
        losses=tuple(map(_mean, zip(*(one.losses for one in each), strict=True))),
        changed=max(one.changed for one in each),
        unchanged=tuple(
            name for name in each[0].unchanged if all(name in one.unchanged for one in each)
        ),
    )


def _mean_communication(each: Sequence[Communication | None]) -> Communication | None:
    told = [one for one in each if one is not None]
    if not told:
        return None
    parts = dict.fromkeys(part for one in told for part in one.exposed_shares)
    return Communication(
        step_s=_mean([one.step_s for one in told]),
        running_s=_mean([one.running_s for one in told]),
        exposed_s=_mean([one.exposed_s for one in told]),
        exposed_shares={
            part: _mean([one.exposed_shares.get(part, 0.0) for one in told]) for part in parts
        },
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _largest(memories: Sequence[Memory]) -> Memory:
    def allocated(peak: Peak) -> int:
        return peak.allocated_bytes

    return replace(
        max(memories, key=lambda one: allocated(one.steady_step)),
        build=max((one.build for one in memories), key=allocated),
        first_step=max((one.first_step for one in memories), key=allocated),
    )


def guilty(ended: Sequence[Ended]) -> Outcome:
    """The outcome of a group that did not answer as a whole, naming the rank that is to blame.

    Who only saw another leave, or waited in a collective, is a victim: an own exception comes
    before a death, a death before having stood elsewhere than in torch, and that before the rest.
    """
    blames = [_blame(one) for one in ended]
    rank = min(range(len(ended)), key=lambda rank: blames[rank])
    one, who = ended[rank], f"rank {rank}: " if len(ended) > 1 else ""
    stack = "\n".join(reversed(one.stack)) if one.stack else None
    if blames[rank] == WAITED and RIGHT in blames:
        who = f"rank {blames.index(RIGHT)} left before rank {rank} had done: "
    if one.death is not None:
        kind, reason = in_known_words(one.death) or ("failed", one.death)
        if len(ended) > 1 and set(blames) == {WAITED}:
            reason += ALL_WAIT
        return Outcome(kind=kind, reason=f"{who}{reason}", traceback=one.traceback or stack)
    outcome = Outcome.from_json(one.answer["outcome"])
    if outcome.kind == "unsupported":
        return outcome
    return replace(outcome, reason=f"{who}{outcome.reason}")


# Where a victim stands: in a collective, or where the ruler reads what one gives.
WAITING_IN = ("torch/", "stepbench/measuring/")
ALL_WAIT = ": all ranks wait; if a block runs on some only, choose ddp-unused"
# How surely a rank is to blame, surest first.
RAISED, DIED, STOOD, SAW_ANOTHER_LEAVE, WAITED, RIGHT = range(6)


def _blame(one: Ended) -> int:
    if one.death is None and "outcome" not in one.answer:
        return RIGHT
    if one.stack is not None:
        waits = not one.stack or one.stack[0].partition("(")[2].startswith(WAITING_IN)
        return WAITED if waits else STOOD
    reason = one.death or str(one.answer["outcome"]["reason"])
    if in_known_words(reason):
        return RAISED
    if any(words in reason for words in PEER_LEFT):
        return SAW_ANOTHER_LEAVE
    return DIED if one.death and one.traceback is None else RAISED

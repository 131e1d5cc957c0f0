"""How long collectives ran in a step, and how long while nothing was computed.

Read from steps under torch's profiler: on CUDA from the times of kernels and copies, on the CPU
from those of gloo's threads beside those of operators. To wait for a rank that is late counts as a
collective that runs. Profiling slows operators down, so only shares of a step mean something.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from stepbench.measuring.probes.timing import synchronize
from stepbench.records.measurement import Communication
from stepbench.training.types import Loop

Interval = tuple[float, float]
PREFIX = "stepbench::"
# One step's exposed share says little: whichever rank is late, the others wait for it.
STEPS = 5
# gloo's threads end their ranges after a collective has given its result: a profiler that stops
# before reads what they still write.
SETTLE_S = 0.01


def watched_steps(loop: Loop, step: Callable[[Loop], None], device: torch.device) -> Communication:
    """Run steps of the loop, each under the profiler: what the median one's collectives took.

    The median is that of the exposed share. A first step is not counted: a profiler starts slowly.
    """
    each = [_watched_step(loop, step, device) for _ in range(STEPS + 1)][1:]
    return sorted(each, key=lambda one: one.exposed_s / one.step_s)[STEPS // 2]


def _watched_step(loop: Loop, step: Callable[[Loop], None], device: torch.device) -> Communication:
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    edge = _edge(device)
    named = replace(
        loop,
        forward=_named("forward", loop.forward, edge),
        backward=_named("backward", loop.backward, edge),
        update=_named("update", loop.update, edge),
    )
    synchronize(device)
    with profile(activities=activities) as profiled:
        began = time.perf_counter()
        step(named)
        synchronize(device)
        step_s = time.perf_counter() - began
        time.sleep(SETTLE_S)
    return said(profiled.events() or (), step_s, cuda=device.type == "cuda")


def _edge(device: torch.device) -> Callable[[], object]:
    """What to run at both ends of a part, so that the profiler sees all of it on the device.

    There a range spans the kernels launched by its own thread, and in no range inside it. Those of
    a backward pass are launched by autograd's thread, and optimizers open ranges of their own.
    """
    if device.type == "cpu":
        return lambda: None
    return torch.zeros((), device=device).zero_  # one kernel, in the order of the stream


def _named(
    part: str, function: Callable[..., Any], edge: Callable[[], object]
) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with record_function(PREFIX + part):
            edge()
            result = function(*arguments)
            edge()
        return result

    return run


def said(events: Iterable[Any], step_s: float, *, cuda: bool) -> Communication:
    """What the profiler's events say of a step that took so long.

    An operator that calls others is computing while they are: one that waits inside is not.
    """
    running, computing = [], []
    parts: dict[str, list[Interval]] = defaultdict(list)
    for event in events:
        if (event.device_type == DeviceType.CUDA) != cuda:
            continue
        name = event.name.lower()
        when = (event.time_range.start / 1e6, event.time_range.end / 1e6)
        if name.startswith(PREFIX):
            parts[name.removeprefix(PREFIX)].append(when)
        elif cuda and event.is_user_annotation:
            continue  # a span around kernels, not one of them
        elif name.startswith(("nccl", "gloo:")):
            running.append(when)
        elif cuda or (name.startswith("aten::") and not event.cpu_children):
            computing.append(when)
    shares = {
        part: exposed(_within(running, when), _within(computing, when)) / total(when)
        for part, when in parts.items()
    }
    return Communication(
        step_s=step_s,
        running_s=total(running),
        exposed_s=exposed(running, computing),
        exposed_shares={part: share for part, share in shares.items() if share},
    )


def exposed(running: list[Interval], computing: list[Interval]) -> float:
    """Length of what is in the one union and not in the other."""
    alone = total([*running, *computing]) - total(computing)
    return min(alone, total(running))  # a difference of sums is rounded


def total(when: Iterable[Interval]) -> float:
    """Length of the union of intervals."""
    covered, end = 0.0, float("-inf")
    for begin, stop in sorted(when):
        covered += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return covered


def _within(when: Iterable[Interval], parts: Iterable[Interval]) -> list[Interval]:
    clipped = ((max(begin, low), min(end, high)) for begin, end in when for low, high in parts)
    return [(begin, end) for begin, end in clipped if begin < end]

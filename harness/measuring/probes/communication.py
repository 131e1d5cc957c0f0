"""How long collectives ran in a step, and how long while nothing was computed.

Read from one step under torch's profiler: on CUDA from the kernels' own times, on the CPU from the
times of gloo's threads beside those of operators. Profiling slows operators down, so only shares
of that step mean something.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from harness.core import Communication
from harness.measuring.probes.timing import synchronize

Interval = tuple[float, float]


def watched_step(step: Callable[[], None], device: torch.device) -> Communication:
    """Run a step under the profiler, and say how much of it collectives took."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    with profile(activities=activities) as profiled:
        began = time.perf_counter()
        step()
        synchronize(device)
        step_s = time.perf_counter() - began
    running, computing = intervals(profiled.events() or (), cuda=device.type == "cuda")
    return Communication(
        step_s=step_s,
        running_s=total(running),
        exposed_s=total([*running, *computing]) - total(computing),
    )


def intervals(events: Iterable[Any], *, cuda: bool) -> tuple[list[Interval], list[Interval]]:
    """When collectives ran and when anything was computed, in seconds, from profiler events.

    An operator that calls others is computing while they are: one that waits inside is not.
    """
    running, computing = [], []
    for event in events:
        if (event.device_type == DeviceType.CUDA) != cuda:
            continue
        name, times = event.name.lower(), event.time_range
        when = (times.start / 1e6, times.end / 1e6)
        if name.startswith(("nccl", "gloo:")):
            running.append(when)
        elif cuda or (name.startswith("aten::") and not event.cpu_children):
            computing.append(when)
    return running, computing


def total(when: Iterable[Interval]) -> float:
    """Length of the union of intervals."""
    covered, end = 0.0, float("-inf")
    for begin, stop in sorted(when):
        covered += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return covered

"""Checks of what measuring takes from torch: clocks, allocator, CUDA graphs, process groups."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from stepbench.measuring.probes.memory import memory_probe
from stepbench.measuring.probes.timing import time_steps
from stepbench.measuring.process import in_children
from stepbench.measuring.ranks import Group, Place, guilty
from stepbench.measuring.team import default_ranks
from stepbench.records.machine import device_type
from stepbench.selfcheck.checking import DoesNotWork, Machine, device_of, require

MIB = 2**20
TRACE_TOLERANCE = 0.01
STEP, STEPS = "stepbench::checked step", 10
# A group that cannot form is told before the check's own deadline.
GROUP_DEADLINE_S = 40.0


def allocator_peak(machine: Machine) -> str:
    """64 and 32 MiB at once, then 16 beside the 32: a peak of 96 MiB, to the byte."""

    def run() -> None:
        first = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
        second = torch.empty(32 * MIB, dtype=torch.uint8, device=device)
        del first
        third = torch.empty(16 * MIB, dtype=torch.uint8, device=device)
        del second, third

    device = device_of(machine)
    probe = memory_probe(device)
    _, peak = probe.watch(run)
    told = f"{probe.method}: {peak.allocated_bytes:,} bytes, by hand {96 * MIB:,}"
    require(peak.allocated_bytes == 96 * MIB, told)
    return told


def marks_and_trace(machine: Machine) -> str:
    """The same steps by marks (events on CUDA), by the wall, and by the profiler's trace."""
    device = device_of(machine)
    cuda = device.type == "cuda"
    rows, dtype, products = (4096, torch.float16, 40) if cuda else (1024, torch.float32, 2)
    left = torch.randn(rows, rows, device=device, dtype=dtype)
    result = torch.empty_like(left)

    def step() -> None:
        with record_function(STEP):
            for _ in range(products):
                torch.mm(left, left, out=result)

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    for _ in range(2):  # the first time, profiler and clocks are starting
        with profile(activities=activities) as profiled:
            window = time_steps(step, STEPS, device)
    require(window.objection() is None, f"marks and the wall disagree: {window.objection()}")
    events = profiled.events() or ()
    if cuda:
        return agreement(statistics.fmean(window.step_s), _span_s(events) / STEPS)
    return agreement(*_closest(window.step_s, _ranges_s(events)))


def _closest(marked_s: Sequence[float], traced_s: Sequence[float]) -> tuple[float, float]:
    """The step of which both say most nearly the same; a clock that is wrong is so in every step.

    Between a step's mark and its range in the trace others may take the processor.
    """
    return min(
        zip(marked_s, traced_s, strict=True), key=lambda both: abs(both[0] - both[1]) / both[0]
    )


def agreement(marked_s: float, traced_s: float) -> str:
    """What both say of a step; DoesNotWork where they are more than 1% apart."""
    told = f"a step took {1e3 * marked_s:.3f} ms by marks, {1e3 * traced_s:.3f} in the trace"
    apart = abs(marked_s - traced_s) > TRACE_TOLERANCE * marked_s
    require(not apart, f"{told}: more than {TRACE_TOLERANCE:.0%} apart")
    return f"{told}; marks and the wall agree"


def _span_s(events: Iterable[Any]) -> float:
    """From the first kernel's begin to the last one's end."""
    kernels = [
        one.time_range
        for one in events
        if one.device_type == DeviceType.CUDA and not one.is_user_annotation
    ]
    require(bool(kernels), "the profiler saw no kernel")
    return float(max(one.end for one in kernels) - min(one.start for one in kernels)) / 1e6


def _ranges_s(events: Iterable[Any]) -> list[float]:
    """Each step's range on the host, in the order in which they ran."""
    ranges = (one.time_range for one in events if one.name == STEP)
    return [one.elapsed_us() / 1e6 for one in sorted(ranges, key=lambda one: one.start)]


def graph_replays(machine: Machine) -> str:
    """A captured graph computes from what its input holds when it is replayed."""
    given = torch.ones(1024, device=device_of(machine))
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):  # torch asks for a warm-up on another stream
        result = given * 2 + 1
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = given * 2 + 1
    given.fill_(3)
    graph.replay()
    torch.cuda.synchronize()
    values = set(result.tolist())
    require(values == {7.0}, f"3 x 2 + 1 gave {values} when the graph was replayed")
    return "captured once and replayed with another input: 3 x 2 + 1 = 7"


def all_reduce(machine: Machine) -> str:
    """A group of fresh processes adds up their ranks' numbers: 1 + 2 + … on each of them."""
    ranks = default_ranks(machine)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "meeting")
        places = [Place(rank=r, ranks=ranks, device=r, file=file) for r in range(ranks)]
        kind = device_type(machine)
        tasks = [(_sum_of_ranks, place.to_json(), kind) for place in places]
        ended = in_children(tasks, deadline_s=GROUP_DEADLINE_S)
    if any(one.death for one in ended):
        outcome = guilty(ended)
        raise DoesNotWork(str(outcome.reason), outcome.traceback)
    expected = ranks * (ranks + 1) / 2
    told = [one.answer["values"] for one in ended]
    require(told == [[expected]] * ranks, f"ranks hold {told}, not {expected:g} everywhere")
    return f"{ended[0].answer['backend']}, ranks: {ranks}, sum {expected:g} on each"


def _sum_of_ranks(place_json: dict[str, Any], kind: str) -> dict[str, Any]:
    place = Place.from_json(place_json)
    device = torch.device(kind, place.device) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    group = Group(place, device, GROUP_DEADLINE_S, host_tensors=False)
    numbers = torch.full((2**20,), float(place.rank + 1), device=device)
    dist.all_reduce(numbers)
    group.worst(0.0)  # none leaves while another still needs it
    return {"backend": group.backend, "values": numbers.unique().tolist()}

"""N timed steps between N + 1 boundary marks, on the host's clock or by CUDA events.

Marks inside a step say which part of it has just ended, so that the parts of a step add up to it.
On CUDA they are events on the stream: what they measure is the device's time, its waiting for the
host included.
"""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from stepbench.measuring.probes.run_delay import RunDelay
from stepbench.records.measurement import StepPart
from stepbench.training.types import Batch, Loop

# Marks and window are two readings of one stretch of time; a larger gap is a broken clock.
WINDOW_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Seconds of each step by its marks, of each step on the CPU, and of the whole by the wall.

    `parts_s` are the seconds of each part in each step; they add up to `step_s` where the steps
    were marked inside. `delay_s` is how long the main thread waited for a processor in each step;
    empty where the kernel does not count it.
    """

    step_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    window_s: float
    parts_s: dict[StepPart, tuple[float, ...]] = field(default_factory=dict)
    delay_s: tuple[float, ...] = ()

    def objection(self) -> str | None:
        """Why the marks cannot be trusted, or None."""
        total = sum(self.step_s)
        if abs(total - self.window_s) > WINDOW_TOLERANCE * self.window_s:
            return f"the steps sum to {total:.4f} s but the window took {self.window_s:.4f} s"
        return None

    def followed_by(self, later: Window) -> Window:
        """Both as one."""
        return Window(
            step_s=self.step_s + later.step_s,
            cpu_s=self.cpu_s + later.cpu_s,
            window_s=self.window_s + later.window_s,
            parts_s={part: one + later.parts_s[part] for part, one in self.parts_s.items()},
            delay_s=self.delay_s + later.delay_s,
        )

    def of(self, steps: Sequence[int]) -> Window:
        """These steps of it only."""

        def kept(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(values[step] for step in steps) if values else ()

        return Window(
            step_s=kept(self.step_s),
            cpu_s=kept(self.cpu_s),
            window_s=self.window_s - sum(self.step_s) + sum(kept(self.step_s)),
            parts_s={part: kept(one) for part, one in self.parts_s.items()},
            delay_s=kept(self.delay_s),
        )


class HostMark:
    """The host's clock, read like a CUDA event (milliseconds)."""

    def __init__(self, *, enable_timing: bool) -> None:
        self.at_ns = 0

    def record(self) -> None:
        self.at_ns = time.perf_counter_ns()

    def elapsed_time(self, later: HostMark) -> float:
        return (later.at_ns - self.at_ns) / 1e6


class Marks:
    """Marks set while steps run; they are made beforehand, and outside of a window set nothing."""

    def __init__(self, device: torch.device) -> None:
        self._kind: Any = torch.cuda.Event if device.type == "cuda" else HostMark
        self._free: list[Any] = []
        self._set: list[tuple[StepPart | None, Any]] | None = None

    def begin(self, count: int) -> None:
        """Have `count` marks ready, and set them from here on."""
        self._free = [self._kind(enable_timing=True) for _ in range(count)]
        self._set = []

    def mark(self, part: StepPart | None) -> None:
        """What has run since the last mark was this part; None: a step ends, or begins, here."""
        if self._set is not None:
            one = self._free.pop() if self._free else self._kind(enable_timing=True)
            one.record()
            self._set.append((part, one))

    def end(self) -> tuple[tuple[float, ...], dict[StepPart, tuple[float, ...]]]:
        """Seconds of each step and of its parts; the device must have passed the last mark."""
        marks, self._set = self._set or [], None
        steps: list[float] = []
        parts: list[dict[StepPart, float]] = []
        started = marks[0][1]
        now: dict[StepPart, float] = defaultdict(float)
        for (_, earlier), (part, later) in pairwise(marks):
            now[part or "rest"] += earlier.elapsed_time(later) / 1e3
            if part is None:
                steps.append(started.elapsed_time(later) / 1e3)
                parts.append(now)
                started, now = later, defaultdict(float)
        names = dict.fromkeys(name for one in parts for name in one)
        return tuple(steps), {name: tuple(one[name] for one in parts) for name in names}


def marked(loop: Loop, marks: Marks) -> Loop:
    """The loop, marking where its forward, backward and update end."""

    def forward(batch: Batch) -> Tensor:
        marks.mark("rest")
        loss = loop.forward(batch)
        marks.mark("forward")
        return loss

    def backward(loss: Tensor) -> None:
        loop.backward(loss)
        marks.mark("backward")

    def update() -> None:
        marks.mark("rest")
        loop.update()
        marks.mark("update")

    return replace(loop, forward=forward, backward=backward, update=update)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(
    step: Callable[[], None],
    steps: int,
    device: torch.device,
    *,
    marks: Marks | None = None,
    marks_a_step: int = 0,
) -> Window:
    """Time `steps` calls; nothing inside waits for the device, one synchronize ends the window.

    `marks` are those that the step itself sets, `marks_a_step` how many. Garbage collection is held
    back meanwhile: its pauses belong to no step.
    """
    marks = marks or Marks(device)
    cpu, delays, delay = [0] * (steps + 1), [0] * (steps + 1), RunDelay()
    gc.collect()
    gc.disable()
    try:
        marks.begin(1 + steps * (1 + marks_a_step))
        synchronize(device)
        cpu[0], delays[0] = time.process_time_ns(), delay.read_ns() or 0
        began = time.perf_counter()  # right beside the mark: others may run at any system call
        marks.mark(None)
        for index in range(1, steps + 1):
            step()
            cpu[index], delays[index] = time.process_time_ns(), delay.read_ns() or 0
            marks.mark(None)
        synchronize(device)
        window_s = time.perf_counter() - began
    finally:
        gc.enable()
    step_s, parts_s = marks.end()
    return Window(
        step_s=step_s,
        cpu_s=_differences_s(cpu),
        window_s=window_s,
        parts_s=parts_s if marks_a_step else {},
        delay_s=() if delay.read_ns() is None else _differences_s(delays),
    )


def _differences_s(read_ns: Sequence[int]) -> tuple[float, ...]:
    return tuple((later - earlier) / 1e9 for earlier, later in pairwise(read_ns))

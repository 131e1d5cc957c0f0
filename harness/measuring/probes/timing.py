"""N timed steps between N + 1 boundary marks, on the host's clock or by CUDA events."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

# Marks and window are two readings of one stretch of time; a larger gap is a broken clock.
WINDOW_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Seconds of each step by its marks, of each step on the CPU, and of the whole by the wall."""

    step_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    window_s: float

    def objection(self) -> str | None:
        """Why the marks cannot be trusted, or None."""
        total = sum(self.step_s)
        if abs(total - self.window_s) > WINDOW_TOLERANCE * self.window_s:
            return f"the steps sum to {total:.4f} s but the window took {self.window_s:.4f} s"
        return None


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(step: Callable[[], None], steps: int, device: torch.device) -> Window:
    """Time `steps` calls; nothing inside waits for the device, one synchronize ends the window.

    Garbage collection is held back meanwhile: its pauses belong to no step.
    """
    mark: Any = torch.cuda.Event if device.type == "cuda" else HostMark
    marks = [mark(enable_timing=True) for _ in range(steps + 1)]
    cpu = [0] * (steps + 1)
    gc.collect()
    gc.disable()
    try:
        synchronize(device)
        began = time.perf_counter()
        cpu[0] = time.process_time_ns()
        marks[0].record()
        for index in range(1, steps + 1):
            step()
            cpu[index] = time.process_time_ns()
            marks[index].record()
        synchronize(device)
        window_s = time.perf_counter() - began
    finally:
        gc.enable()
    return Window(
        step_s=tuple(one.elapsed_time(other) / 1e3 for one, other in pairwise(marks)),
        cpu_s=tuple((other - one) / 1e9 for one, other in pairwise(cpu)),
        window_s=window_s,
    )


class HostMark:
    """The host's clock, read like a CUDA event (milliseconds)."""

    def __init__(self, *, enable_timing: bool) -> None:
        self.at_ns = 0

    def record(self) -> None:
        self.at_ns = time.perf_counter_ns()

    def elapsed_time(self, later: HostMark) -> float:
        return (later.at_ns - self.at_ns) / 1e6

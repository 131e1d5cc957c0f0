"""How a process gets warm, and the window of steps that it times; of several ranks, all alike."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stepbench.measuring.probes.compilation import compile_s
from stepbench.measuring.probes.device import Clock
from stepbench.measuring.probes.timing import Marks, Window, synchronize, time_steps
from stepbench.measuring.ranks import Group
from stepbench.measuring.window_plan import WindowPlan

# What is not steady after so many steps has noise, not a warm-up.
WARMUP_CAP = 10
# A step so many times as slow, or as fast, as the fastest so far is still warming up.
STEADY = 1.1
# A GPU whose clock is not at rest by then is at its power cap, where it never is.
CLOCK_CAP_S = 5.0
# A window whose steps compile is extended up to so many times its length.
MOST_EXTENSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """Seconds of the fastest warm-up step, and whether the last was about as fast."""

    fastest_s: float
    steady: bool


def warm_up(
    step: Callable[[], None], plan: WindowPlan, group: Group, clock: Clock | None, *, ahead: int
) -> Warm:
    """Step as often as the plan says.

    Where it is not agreed yet, go on until a step is as fast as the fastest so far and the GPU's
    clock rests, each within a cap. The first steps use up what workers had loaded `ahead`:
    they say nothing.
    """
    fastest_s, began_s = float("inf"), time.monotonic()
    for count in itertools.count(1):
        took_s = group.worst(_timed(step, group.device))
        steady = fastest_s / STEADY <= took_s <= STEADY * fastest_s
        if count > ahead:
            fastest_s = min(fastest_s, took_s)
        at_rest = not clock or not group.worst(not clock.at_rest())
        if count < plan.warmup_steps:
            continue
        if plan.agreed:
            break
        patient = clock and group.worst(time.monotonic() - began_s) < CLOCK_CAP_S
        if (steady or count >= ahead + WARMUP_CAP) and (at_rest or not patient):
            break
    return Warm(fastest_s=fastest_s, steady=steady and at_rest)


def _timed(step: Callable[[], None], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - began


def time_window(
    step: Callable[[], None], steps: int, group: Group, *, marks: Marks, marks_a_step: int
) -> tuple[Window, list[int]]:
    """Time so many steps that compile nothing.

    A step that compiled something is no sample, and one more is timed instead; `MOST_EXTENSION`
    ends that.

    Returns:
        a window of all steps that ran, and which of them are samples.
    """
    ran, samples = Window(step_s=(), cpu_s=(), window_s=0.0), list[int]()
    while len(samples) < steps and len(ran.step_s) < MOST_EXTENSION * steps:
        already = len(ran.step_s)
        window, compiled = _watched(step, steps - len(samples), group, marks, marks_a_step)
        ran = ran.followed_by(window) if already else window
        samples += [already + index for index, did in enumerate(compiled) if not did]
    return ran, samples


def _watched(
    step: Callable[[], None], steps: int, group: Group, marks: Marks, marks_a_step: int
) -> tuple[Window, list[bool]]:
    """A window, and which of its steps compiled something on any rank."""
    spent_s = [compile_s()]

    def watched() -> None:
        step()
        spent_s.append(compile_s())

    window = time_steps(watched, steps, group.device, marks=marks, marks_a_step=marks_a_step)
    if not group.worst(spent_s[-1] != spent_s[0]):
        return window, [False] * steps
    return window, [bool(group.worst(a != b)) for a, b in itertools.pairwise(spent_s)]

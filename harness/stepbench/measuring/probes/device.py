"""What state a GPU was in while a process measured on it: NVML's figures, sampled from outside.

The process that forked the measuring one samples, so that nothing of it runs inside a window. NVML
is asked, never torch.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from stepbench.records.measurement import DeviceState

INTERVAL_S = 0.2
# A clock is at rest when it has stayed within this share of itself for so long.
AT_REST, REST_S = 0.02, 1.0
# What an energy counter rises by in less says little: drivers renew it every 20 to 100 ms.
LEAST_ENERGY_S = 1.0
# Readings of it are so far apart at least: each asks the driver.
LOOK_S = 0.05
# NVML's bits for why a clock is held down. A power cap is how a GPU runs when it is busy; these
# mean that it is slower than it would be on another day.
SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}
NORMAL = {0x04: "power cap", 0x02: "application clocks", 0x10: "sync boost", 0x01: "idle"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a device; what NVML does not tell on it is None."""

    at_s: float  # time.monotonic()
    clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    reasons: int
    energy_j: float | None
    processes: tuple[int, ...] | None


class DeviceSampler:
    """Samples the GPU that a process measures on; without a driver it samples nothing."""

    def __init__(self, device: int) -> None:
        self.samples: list[Sample] = []
        self._handle: Any = None
        with suppress(pynvml.NVMLError, IndexError):
            pynvml.nvmlInit()
            self._handle = _handle(device)

    def sample(self) -> None:
        """Look once."""
        if self._handle is None:
            return
        one = self._handle
        power_mw = _told(pynvml.nvmlDeviceGetPowerUsage, one)
        energy_mj = _told(pynvml.nvmlDeviceGetTotalEnergyConsumption, one)
        processes = _told(pynvml.nvmlDeviceGetComputeRunningProcesses, one)
        self.samples.append(
            Sample(
                at_s=time.monotonic(),
                clock_mhz=_told(pynvml.nvmlDeviceGetClockInfo, one, pynvml.NVML_CLOCK_SM),
                temperature_c=_told(
                    pynvml.nvmlDeviceGetTemperature, one, pynvml.NVML_TEMPERATURE_GPU
                ),
                power_w=None if power_mw is None else power_mw / 1e3,
                reasons=_told(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, one) or 0,
                energy_j=None if energy_mj is None else energy_mj / 1e3,
                processes=None if processes is None else tuple(each.pid for each in processes),
            )
        )

    def between(self, began_s: float, ended_s: float, own: Sequence[int]) -> DeviceState | None:
        """The device's state in a stretch of `time.monotonic()`; `own` are processes of the case.

        A stretch that was too short for a sample is told by those next to it. None where there is
        nothing: no driver.
        """
        samples = [one for one in self.samples if began_s <= one.at_s <= ended_s]
        if not samples:
            before = [one for one in self.samples if one.at_s < began_s]
            after = [one for one in self.samples if one.at_s > ended_s]
            samples = [*before[-1:], *after[:1]]
        if not samples:
            return None
        clocks = [one.clock_mhz for one in samples if one.clock_mhz is not None]
        powers = [one.power_w for one in samples if one.power_w is not None]
        energy_j, energy_s = _energy(samples)
        reasons = 0
        for one in samples:
            reasons |= one.reasons
        return DeviceState(
            samples=len(samples),
            clock_mhz=statistics.median(clocks) if clocks else None,
            lowest_clock_mhz=min(clocks, default=None),
            temperature_c=max((one.temperature_c or 0 for one in samples), default=None) or None,
            power_w=statistics.fmean(powers) if powers else None,
            energy_j=energy_j,
            energy_s=energy_s,
            throttle_reasons=tuple(
                name for bit, name in (SLOWDOWNS | NORMAL).items() if reasons & bit
            ),
            foreign_processes=_foreign(samples, own),
        )


class Clock:
    """The clock of a GPU's processors, looked at between the steps of a warm-up."""

    def __init__(self, device: int) -> None:
        self._sampler = DeviceSampler(device)

    def at_rest(self) -> bool:
        """Look at it, and say whether it rests (`at_rest`)."""
        seen = self._sampler.samples
        if not seen or time.monotonic() - seen[-1].at_s >= LOOK_S:
            self._sampler.sample()
        return at_rest([(one.at_s, one.clock_mhz) for one in seen])


def at_rest(readings: Sequence[tuple[float, int | None]]) -> bool:
    """Whether a clock stayed within 2% over the last second of these (seconds, MHz).

    It does not before there is a second of them; one that the driver does not tell rests always.
    """
    known = [(at_s, mhz) for at_s, mhz in readings if mhz is not None]
    if not known:
        return True
    before = [index for index, (at_s, _) in enumerate(known) if at_s <= known[-1][0] - REST_S]
    last = [mhz for _, mhz in known[before[-1] :]] if before else []
    return bool(last) and max(last) - min(last) <= AT_REST * max(last)


def disturbances(state: DeviceState | None) -> tuple[str, ...]:
    """What in a device's state disturbed a measurement, one line each."""
    if state is None:
        return ()
    slow = [name for name in SLOWDOWNS.values() if name in state.throttle_reasons]
    told = [f"the GPU's clock was held down: {', '.join(slow)}"] if slow else []
    if state.foreign_processes:
        told.append("other processes used the GPU")
    return tuple(told)


def _handle(device: int) -> Any:
    """The NVML handle of the index-th GPU that CUDA_VISIBLE_DEVICES, UUIDs by now, leaves."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return pynvml.nvmlDeviceGetHandleByIndex(device)
    return pynvml.nvmlDeviceGetHandleByUUID(visible.split(",")[device])


def _told(ask: Any, *arguments: Any) -> Any:
    """The answer, or None where this GPU or driver gives none."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError:
        return None


def _foreign(samples: Sequence[Sample], own: Sequence[int]) -> int | None:
    """Most processes of others at once; None where ours are not seen either (containers)."""
    ours = set(own)
    for pid in own:
        with suppress(psutil.Error):
            ours |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
    seen = [set(one.processes) for one in samples if one.processes is not None]
    if not any(ours & one for one in seen):
        return None
    return max(len(one - ours) for one in seen)


def _energy(samples: Sequence[Sample]) -> tuple[float | None, float | None]:
    """What the device's energy counter rose by, in J, and in how many seconds."""
    told = [(one.at_s, one.energy_j) for one in samples if one.energy_j is not None]
    if not told or told[-1][0] - told[0][0] < LEAST_ENERGY_S:
        return None, None
    (began_s, before_j), (ended_s, after_j) = told[0], told[-1]
    return after_j - before_j, ended_s - began_s

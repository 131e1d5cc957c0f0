"""What GPUs were like while a case ran on them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stepbench.records.measurement import DeviceState, Measurement
from stepbench.stats import measures


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFigures:
    """Of the GPU during the windows, medians over rounds; the temperature is the highest.

    `power_w` is that of all ranks' GPUs, clock and temperature the slowest rank's. `energy_j` is
    what a step took of them by their energy counters; None where a window is too short for them.
    """

    clock_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    energy_j: float | None
    throttle_reasons: tuple[str, ...]


def device_figures(processes: Sequence[Measurement]) -> DeviceFigures | None:
    """None where no GPU told its state."""
    seen = [one.device for one in processes if one.device]
    if not seen:
        return None
    clocks = [state.clock_mhz for state in seen if state.clock_mhz is not None]
    heats = [state.temperature_c for state in seen if state.temperature_c is not None]
    powers = _known(_power_w(one) for one in processes)
    energies = _known(_energy_j(one) for one in processes)
    reasons = dict.fromkeys(reason for state in seen for reason in state.throttle_reasons)
    return DeviceFigures(
        clock_mhz=statistics.median(clocks) if clocks else None,
        temperature_c=max(heats, default=None),
        power_w=statistics.median(powers) if powers else None,
        energy_j=statistics.median(energies) if energies else None,
        throttle_reasons=tuple(reasons),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _power_w(process: Measurement) -> float | None:
    """What all of a process' or group's GPUs drew; None where one of them does not tell."""
    return _of_all_devices(process, lambda one: one.power_w)


def _energy_j(process: Measurement) -> float | None:
    """What a step took of all of them; None where one of them does not tell."""

    def drawn_w(one: DeviceState) -> float | None:
        return one.energy_j / one.energy_s if one.energy_j and one.energy_s else None

    all_w = _of_all_devices(process, drawn_w)
    return all_w and all_w * measures.step_s(process)


def _of_all_devices(
    process: Measurement, read: Callable[[DeviceState], float | None]
) -> float | None:
    devices = [rank.device for rank in process.ranks] or [process.device]
    told = _known(read(one) if one else None for one in devices)
    return sum(told) if len(told) == len(devices) else None

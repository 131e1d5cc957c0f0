"""What GPUs were like during the windows of a case, as their driver told it."""

from __future__ import annotations

from collections.abc import Callable

from stepbench.metrics.metric import Metric
from stepbench.metrics.result import Result
from stepbench.metrics.summary import Read, all_known, highest_of_known, median_of_known
from stepbench.records.measurement import DeviceState, Measurement
from stepbench.stats import measures


def _of_all_devices(
    process: Measurement, read: Callable[[DeviceState], float | None]
) -> float | None:
    """The sum over a process' or group's GPUs; None where one of them does not tell."""
    devices = [rank.device for rank in process.ranks] or [process.device]
    known = all_known(read(one) if one else None for one in devices)
    return sum(known) if known else None


def _energy_j(process: Measurement) -> float | None:
    def drawn_w(one: DeviceState) -> float | None:
        return one.energy_j / one.energy_s if one.energy_j and one.energy_s else None

    all_w = _of_all_devices(process, drawn_w)
    return all_w and all_w * measures.step_s(process)


ENERGY_J = Metric[Measurement](
    key="energy_j",
    unit="J",
    better="lower",
    about="Energy of a step of all GPUs, by their counters; None where a window is too short.",
    read=_energy_j,
    summary=median_of_known,
)
POWER_W = Metric[Measurement](
    key="power_w",
    unit="W",
    better="lower",
    about="What all GPUs drew.",
    read=lambda one: _of_all_devices(one, lambda state: state.power_w),
    summary=median_of_known,
)
CLOCK_MHZ = Metric[Measurement](
    key="clock_mhz",
    unit="MHz",
    better="higher",
    about="The clock of the slowest rank's GPU.",
    read=lambda one: one.device.clock_mhz if one.device else None,
    summary=median_of_known,
)
TEMPERATURE_C = Metric[Measurement](
    key="temperature_c",
    unit="°C",
    better="lower",
    about="The highest temperature of the slowest rank's GPU.",
    read=lambda one: one.device.temperature_c if one.device else None,
    summary=highest_of_known,
)


def _reasons(_: Read, result: Result) -> tuple[str, ...] | None:
    """Each reason that any process met, once; None where no GPU told its state."""
    seen = [one.device for one in result.processes if one.device]
    told = dict.fromkeys(reason for state in seen for reason in state.throttle_reasons)
    return tuple(told) if seen else None


THROTTLE_REASONS = Metric[Measurement](
    key="throttle_reasons",
    unit="count",
    better="lower",
    about="What limited the clock.",
    read=lambda one: len(one.device.throttle_reasons) if one.device else None,
    summary=_reasons,
)

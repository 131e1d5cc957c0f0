"""How numbers and text from records are shown: units, scaling and escaping stand here only."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepbench.errors import plain as plain
from stepbench.metrics.metric import COUNTED, Unit
from stepbench.records.run import Calibration
from stepbench.stats.measures import Estimate


def markdown(text: str) -> str:
    """One line of Markdown that shows `text` as it is, in a table cell too."""
    return re.sub(r"([\\`*_|<>\[\]&])", r"\\\1", plain(text))


def milliseconds(seconds: float) -> str:
    """A duration in milliseconds, to three digits."""
    return _digits(seconds * 1e3, 3)


def mebibytes(size_bytes: float) -> str:
    """A size in MiB (2**20 bytes), to three digits."""
    return _digits(size_bytes / 2**20, 3)


def ratio(value: float) -> str:
    """A factor: `1.42x`, and two digits where it is small: `0.083x`."""
    return _factor(value) + "x"


def estimate(value: Estimate) -> str:
    """`1.42x [1.38, 1.45]`; `~1.42x` where too few rounds give no interval; `1.00x` is exact."""
    if value.low is None or value.high is None:
        return "~" + ratio(value.median)
    if value.low == value.high:
        return ratio(value.median)
    return f"{ratio(value.median)} [{_factor(value.low)}, {_factor(value.high)}]"


def collectives(each: Mapping[str, tuple[int, int]]) -> str:
    """`2 all-reduce 4.65, 7 all-gather 8.31`: how many of each kind, and their MiB."""
    return ", ".join(
        f"{calls} {kind.replace('_', '-')} {mebibytes(size_bytes)}"
        for kind, (calls, size_bytes) in sorted(each.items())
    )


def difference(value: float | None) -> str:
    """A relative difference: `0` is bit-equal."""
    if value is None:
        return "n/a"
    return "0" if value == 0 else f"{value:.1e}"


def known(value: float | None) -> str:
    """A number to three digits, or nothing where it is not known."""
    return "" if value is None else _digits(value, 3)


def share(value: float | None) -> str:
    """`20.2%`, or nothing where it is not known."""
    return "" if value is None else f"{value:.1%}"


def rate(per_s: float) -> str:
    """A throughput per second, to three digits and with thousands set apart."""
    return _digits(per_s, 3)


def calibration(calibrations: Sequence[Calibration]) -> str:
    """The machine's own speed, medians over a run, and how far its products' speed wandered."""

    def median(read: Callable[[Calibration], float | None]) -> float:
        return statistics.median(read(one) or 0.0 for one in calibrations)

    products = [one.matmul_flops_per_s for one in calibrations]
    wandered = (max(products) - min(products)) / statistics.median(products)
    told = (
        f"calibration: {median(lambda one: one.matmul_flops_per_s) / 1e9:,.0f} GFLOP/s "
        f"({calibrations[0].matmul_dtype} products, range {wandered:.0%}), "
        f"memory {median(lambda one: one.memory_bytes_per_s) / 1e9:,.0f} GB/s"
    )
    if calibrations[0].host_to_device_bytes_per_s is None:
        return told
    pinned = median(lambda one: one.host_to_device_bytes_per_s) / 1e9
    pageable = median(lambda one: one.pageable_to_device_bytes_per_s) / 1e9
    return f"{told}, to the device {pinned:,.1f} GB/s pinned and {pageable:,.1f} pageable"


def span(values: Sequence[int], unit: str) -> str:
    """`8 rounds`, or `5-20 steps` where they differ; "no rounds" where there are none."""
    if not values:
        return f"no {unit}s"
    low, high = min(values), max(values)
    if low == high:
        return f"{low} {unit}" + ("" if low == 1 else "s")
    return f"{low}-{high} {unit}s"


def threads(values: Sequence[int]) -> str:
    """`one thread`, or `4 threads`."""
    return "one thread" if set(values) == {1} else span(values, "thread")


def moment(iso: str) -> str:
    """`2026-01-31 12:00 UTC` from the ISO 8601 time in UTC that records hold."""
    return iso[:16].replace("T", " ") + " UTC"


def _ratio_or_estimate(value: float | Estimate) -> str:
    return estimate(value) if isinstance(value, Estimate) else ratio(value)


def _count(value: float) -> str:
    return f"{value:,.0f}"


# How a value of each unit is written in a cell.
UNITS: Mapping[Unit, Callable[[Any], str]] = {
    "seconds": milliseconds,
    "bytes": mebibytes,
    "ratio": _ratio_or_estimate,
    "share": share,
    "difference": difference,
    "items/s": rate,
    **dict.fromkeys(COUNTED, _count),
    **dict.fromkeys(("value", "J", "W", "MHz", "°C"), known),
}


def _factor(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else _digits(value, 2)


def _digits(value: float, count: int) -> str:
    """`value` with at least `count` significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, count - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"

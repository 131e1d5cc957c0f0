"""The columns of result tables: which metrics are shown, in which tables, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from stepbench.errors import StepbenchError
from stepbench.metrics import beside, counts, device, memory, time, utilization
from stepbench.metrics.catalogue import METRICS
from stepbench.metrics.metric import Metric, Unit
from stepbench.report import formats
from stepbench.report.column import Column, Group, always, nonzero, present, varies
from stepbench.report.rows import Figures, Table
from stepbench.stats.noise import DELAYED_SHARE

WAITING_SHARE = 0.05
# A process is shown where it held so much more than its tensors.
PARTED_BYTES = 8 * 2**20

TYPICAL_LEGEND = (
    "typical: the median step. Of an amortised case it is over 5% off the mean (step ms): what "
    "comes only every so many steps is in the mean alone."
)
UNDELAYED_LEGEND = (
    "undelayed: the mean step less what the process waited for a processor that others had (the "
    "kernel's run delay), where one process of one thread did it all."
)
CPU_LEGEND = (
    "CPU speed-up: the ratio of processor time, which neighbours move far less than that of wall "
    "time; where one process on a CPU does it all."
)
NARROW_LEGEND = (
    "16-bit: part of the FLOPs of matrix products, convolutions and attention whose inputs were "
    "bfloat16 or float16."
)
LOADING_LEGEND = (
    "data wait: part of a step that waited for its batch; host: memory of the process and its "
    "loader workers; epoch pause: from asking for an epoch's first batch to having it."
)
STATE_LEGEND = "state/param: bytes of optimizer state over those of the parameters."
TRAINED_LEGEND = "trained: part of the parameters that had a gradient."
PROCESS_LEGEND = (
    "process MiB: peak of the process beyond its state before the build, with what is no tensor "
    "(NumPy's arrays, libraries' scratch); shown from 8 MiB beyond the tensors' peak on."
)
GROWTH_LEGEND = "growth: memory that each step keeps for good, from 64 KiB a step on: a leak."
COMPILE_LEGEND = (
    "compile s: seconds in the compiler from empty caches, in no step; graphs: what it made; "
    "breaks: where it gave up and began anew; recompiles: made again for the same code."
)
SCALING_LEGEND = (
    "loss scale: factor of the loss in the step that was counted; skipped: first steps that "
    "overflowed and lowered it; zero grads: part of the gradients' elements that were exactly 0."
)
BUDGET_LEGEND = (
    "Step budget in ms, adding up to the step: waiting for the batch, forward, backward, what "
    "collectives add unhidden, the optimizer's update, the rest (moving micro-batches, the loop)."
)

COMPILATION = Group(key="compilation", told_by=time.COMPILE_S)
SCALING = Group(key="scaling", told_by=counts.LOSS_SCALE)
RANKS = Group(
    key="ranks",
    told_by=time.EXPOSED_SHARE,
    title="Each rank",
    legend=(
        "Each rank: what the one with the largest peak holds, peaks in MiB; collectives by kind "
        "with the MiB of the whole tensors; exposed: part of profiled steps in which one ran, a "
        "late rank was waited for, and nothing was computed (mean over ranks). Global batch xN: "
        "weak scaling, its speed-up is of throughput."
    ),
)
DEVICE = Group(
    key="device",
    told_by=device.THROTTLE_REASONS,
    title="The GPU meanwhile",
    legend=(
        "The GPU during the windows, as its driver told it; energy by its own counter, where a "
        "window lasts a second. A power cap is how a busy GPU runs; thermal and hardware limits "
        "disturb."
    ),
)


def _amortised(column: Column, table: Table) -> bool:
    return any(one.amortised for one in table.figures)


def _delayed(figures: Figures) -> bool:
    step_s, undelayed_s = figures[time.STEP_S], figures[time.UNDELAYED_STEP_S]
    return undelayed_s is not None and step_s - undelayed_s > DELAYED_SHARE * step_s


def _any_delayed(column: Column, table: Table) -> bool:
    return any(map(_delayed, table.figures))


def _contended(column: Column, table: Table) -> bool:
    """Whether something shared the processors, and there is processor time to tell."""
    return any(
        figures[column.metric] is not None and (figures.disturbances or _delayed(figures))
        for figures in table.figures
    )


def _loading_matters(column: Column, table: Table) -> bool:
    """Whether a case chose how to load, or waited for its data."""
    waits = [figures[time.DATA_WAIT_SHARE] for figures in table.figures]
    chosen = any("workers" in row.case.combination.techniques for row in table.rows)
    return None not in waits and (chosen or any(wait > WAITING_SHARE for wait in waits))


def _peak_is_known(column: Column, table: Table) -> bool:
    return utilization.legend(table.run.machine) is not None


def _peaks(table: Table) -> str:
    return utilization.legend(table.run.machine) or ""


def _partly_trained(column: Column, table: Table) -> bool:
    """Whether weights had no gradient, which is to be told where it is so in all rows, too."""
    shares = [figures[column.metric] for figures in table.figures]
    return any(share is not None and share < 1 for share in shares) or varies(column, table)


def _beyond_tensors(column: Column, table: Table) -> bool:
    return any(
        (figures[column.metric] or 0) - figures[memory.PEAK_BYTES] > PARTED_BYTES
        for figures in table.figures
    )


_loads = partial(Column, show=_loading_matters, legend=LOADING_LEGEND)
_utilizes = partial(Column, show=_peak_is_known, legend=_peaks)
_compiles = partial(Column, show=present, legend=COMPILE_LEGEND, group=COMPILATION)
_scales = partial(Column, show=present, legend=SCALING_LEGEND, group=SCALING)
_of_ranks = partial(Column, show=always, group=RANKS)
_of_device = partial(Column, show=always, group=DEVICE)

COLUMNS: tuple[Column, ...] = (
    Column(metric=time.STEP_S, header="step ms", show=always),
    Column(metric=beside.SPEEDUP, header="speed-up", show=always, left=True),
    Column(metric=memory.PEAK_BYTES, header="peak MiB", show=always),
    Column(
        metric=beside.MEMORY_RATIO,
        header="memory",
        show=always,
        cell=lambda value: formats.ratio(value.median),
    ),
    Column(metric=memory.WORKING_BYTES, header="grad+act MiB", show=always),
    Column(metric=beside.LOSS_DIFFERENCE, header="loss diff", show=always, absent="n/a"),
    Column(metric=time.ITEMS_PER_S, header="items/s", show=always),
    Column(metric=time.TYPICAL_STEP_S, header="typical ms", show=_amortised, legend=TYPICAL_LEGEND),
    Column(
        metric=time.UNDELAYED_STEP_S,
        header="undelayed ms",
        show=_any_delayed,
        legend=UNDELAYED_LEGEND,
    ),
    Column(metric=beside.CPU_SPEEDUP, header="CPU speed-up", show=_contended, legend=CPU_LEGEND),
    Column(metric=counts.NARROW_SHARE, header="16-bit", show=nonzero, legend=NARROW_LEGEND),
    _loads(metric=time.DATA_WAIT_SHARE, header="data wait", cell="{:.0%}".format),
    _loads(metric=memory.HOST_BYTES, header="host MiB"),
    _loads(metric=time.EPOCH_PAUSE_S, header="epoch pause ms"),
    _utilizes(metric=utilization.MFU, header="MFU"),
    _utilizes(metric=utilization.HFU, header="HFU"),
    Column(metric=memory.STATE_RATIO, header="state/param", show=varies, legend=STATE_LEGEND),
    Column(
        metric=memory.TRAINED_SHARE,
        header="trained",
        show=_partly_trained,
        legend=TRAINED_LEGEND,
        cell="{:.2%}".format,
    ),
    Column(
        metric=memory.PROCESS_PEAK_BYTES,
        header="process MiB",
        show=_beyond_tensors,
        legend=PROCESS_LEGEND,
    ),
    Column(
        metric=memory.GROWTH_BYTES_PER_STEP,
        header="growth MiB",
        show=nonzero,
        legend=GROWTH_LEGEND,
        cell=lambda value: formats.mebibytes(value) if value else "",
    ),
    _compiles(metric=time.COMPILE_S, header="compile s", cell="{:.1f}".format),
    _compiles(metric=time.GRAPHS, header="graphs"),
    _compiles(metric=time.GRAPH_BREAKS, header="breaks"),
    _compiles(metric=time.RECOMPILES, header="recompiles"),
    _scales(metric=counts.LOSS_SCALE, header="loss scale"),
    _scales(metric=counts.SKIPPED_STEPS, header="skipped"),
    _scales(metric=counts.ZERO_GRADIENTS, header="zero grads", cell="{:.2%}".format),
    _of_ranks(metric=memory.PARAMETER_BYTES, header="parameters MiB"),
    _of_ranks(metric=memory.GRADIENT_BYTES, header="gradients MiB"),
    _of_ranks(metric=memory.OPTIMIZER_BYTES, header="optimizer MiB"),
    _of_ranks(metric=memory.BUILD_PEAK_BYTES, header="peak in build"),
    _of_ranks(metric=memory.FIRST_STEP_PEAK_BYTES, header="first step"),
    _of_ranks(metric=memory.PEAK_BYTES, header="steady step"),
    _of_ranks(
        metric=counts.COLLECTIVES,
        header="collectives a step",
        cell=formats.collectives,
        left=True,
    ),
    _of_ranks(metric=time.EXPOSED_SHARE, header="exposed", cell="{:.0%}".format),
    _of_device(metric=device.ENERGY_J, header="J a step"),
    _of_device(metric=device.POWER_W, header="W"),
    _of_device(metric=device.CLOCK_MHZ, header="MHz"),
    _of_device(metric=device.TEMPERATURE_C, header="at most °C"),
    _of_device(
        metric=device.THROTTLE_REASONS, header="clock limited by", cell=", ".join, left=True
    ),
)


def shown(columns: Sequence[Column], table: Table, group: Group | None = None) -> list[Column]:
    """The columns that tell something here: a group's with a table of its own, or the others."""
    return [
        column
        for column in columns
        if (column.group if column.group and column.group.title else None) is group
        and column.show(column, table)
    ]


def legends(columns: Sequence[Column], table: Table) -> list[str]:
    """What they mean, each once."""
    told = (one.legend if isinstance(one.legend, str) else one.legend(table) for one in columns)
    return list(dict.fromkeys(filter(None, told)))


def groups(columns: Sequence[Column]) -> list[Group]:
    """Those that have a table of their own."""
    return list(dict.fromkeys(one.group for one in columns if one.group and one.group.title))


# A header says the unit in which the cell is written, instead of the key's.
HEADED: Mapping[Unit, tuple[str, str]] = {"seconds": ("_s", " ms"), "bytes": ("_bytes", " MiB")}


def with_requested(keys: Sequence[str]) -> tuple[Column, ...]:
    """COLUMNS, with those metrics shown wherever they are that a person named by their keys.

    Raises:
        StepbenchError: no metric is called so.
    """
    known = {one.key: one for one in METRICS}
    for key in keys:
        if key not in known:
            raise StepbenchError(f"{key!r} is not a metric; there are {', '.join(sorted(known))}")
    metrics = [known[key] for key in dict.fromkeys(keys)]
    of_main = {one.metric for one in COLUMNS if not (one.group and one.group.title)}
    columns = [replace(one, show=always) if one.metric in metrics else one for one in COLUMNS]
    return (*columns, *map(_requested, (one for one in metrics if one not in of_main)))


def _requested(metric: Metric[Any]) -> Column:
    """A column in the main table; what another table shows looks as it does there."""
    for column in COLUMNS:
        if column.metric is metric:
            return replace(column, show=always, group=None)
    suffix, unit = HEADED.get(metric.unit, ("", ""))
    header = (metric.key.replace(suffix, "") if suffix else metric.key).replace("_", " ") + unit
    return Column(metric=metric, header=header, show=always, legend=f"{header}: {metric.about}")

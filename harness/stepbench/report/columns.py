"""The columns of result tables: header, cell, when a column is shown, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stepbench.report import formats
from stepbench.report.devices import DeviceFigures
from stepbench.report.rows import Figures, RankFigures, Table
from stepbench.report.utilization import legend
from stepbench.stats.noise import DELAYED_SHARE

# Header and cell of what an `ok` case shows; the outcome's columns come before.
COLUMNS: dict[str, Callable[[Figures], str]] = {
    "step ms": lambda one: formats.milliseconds(one.step_s),
    "speed-up": lambda one: formats.estimate(one.speedup),
    "peak MiB": lambda one: formats.mebibytes(one.peak_bytes),
    "memory": lambda one: formats.ratio(one.memory_ratio.median),
    "grad+act MiB": lambda one: formats.mebibytes(one.working_bytes),
    "loss diff": lambda one: formats.difference(one.loss_difference),
    "items/s": lambda one: formats.rate(one.tokens_per_s),
}
# Shown where some steps cost more than most.
TYPICAL_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "typical ms": lambda one: formats.milliseconds(one.typical_step_s),
}
TYPICAL_LEGEND = (
    "typical: the median step. Of an amortised case it is over 5% off the mean (step ms): what "
    "comes only every so many steps is in the mean alone."
)
# Shown where others took the processor.
UNDELAYED_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "undelayed ms": lambda one: (
        "" if one.undelayed_step_s is None else formats.milliseconds(one.undelayed_step_s)
    ),
}
UNDELAYED_LEGEND = (
    "undelayed: the mean step less what the process waited for a processor that others had (the "
    "kernel's run delay), where one process of one thread did it all."
)
# Shown where others took the processor, or might have.
CPU_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "CPU speed-up": lambda one: formats.estimate(one.cpu_speedup) if one.cpu_speedup else "",
}
CPU_LEGEND = (
    "CPU speed-up: the ratio of processor time, which neighbours move far less than that of wall "
    "time; where one process on a CPU does it all."
)
# Shown where a case computes in 16 bits.
NARROW_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "16-bit": lambda one: formats.share(one.narrow_share),
}
NARROW_LEGEND = (
    "16-bit: part of the FLOPs of matrix products, convolutions and attention whose inputs were "
    "bfloat16 or float16."
)
# Shown where loading matters: a case chose how to load, or waited for its data.
LOADING_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "data wait": lambda one: f"{one.data_wait_share or 0:.0%}",
    "host MiB": lambda one: formats.mebibytes(one.host_bytes or 0),
    "epoch pause ms": lambda one: formats.milliseconds(one.epoch_pause_s or 0),
}
# Each shown where it is not the same for all.
STATE_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "state/param": lambda one: formats.ratio(one.state_ratio),
}
TRAINED_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "trained": lambda one: "" if one.trained_share is None else f"{one.trained_share:.2%}",
}
# Shown where a process held so much more than its tensors.
PARTED_BYTES = 8 * 2**20
PROCESS_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "process MiB": lambda one: (
        formats.mebibytes(one.process_peak_bytes) if one.process_peak_bytes else ""
    ),
}
# Shown where memory grows with the steps, beyond what the probe takes for none.
GROWTH_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "growth MiB": lambda one: (
        formats.mebibytes(one.growth_bytes_per_step) if one.growth_bytes_per_step else ""
    ),
}
# Shown where anything was compiled.
COMPILE_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "compile s": lambda one: f"{one.compilation.compile_s:.1f}" if one.compilation else "",
    "graphs": lambda one: str(one.compilation.graphs) if one.compilation else "",
    "breaks": lambda one: str(one.compilation.graph_breaks) if one.compilation else "",
    "recompiles": lambda one: str(one.compilation.recompiles) if one.compilation else "",
}
# Shown where anything was computed in float16.
SCALING_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "loss scale": lambda one: formats.known(one.scaling.loss_scale) if one.scaling else "",
    "skipped": lambda one: str(one.scaling.skipped_steps) if one.scaling else "",
    "zero grads": lambda one: f"{one.scaling.zero_gradients:.2%}" if one.scaling else "",
}
# A table of their own, where there was a process group.
RANK_COLUMNS: dict[str, Callable[[RankFigures], str]] = {
    "parameters MiB": lambda one: formats.mebibytes(one.parameter_bytes),
    "gradients MiB": lambda one: formats.mebibytes(one.gradient_bytes),
    "optimizer MiB": lambda one: formats.mebibytes(one.optimizer_bytes),
    "peak in build": lambda one: formats.mebibytes(one.build_peak_bytes),
    "first step": lambda one: formats.mebibytes(one.first_step_peak_bytes),
    "steady step": lambda one: formats.mebibytes(one.peak_bytes),
    "collectives a step": lambda one: formats.collectives(one.collectives),
    "exposed": lambda one: "" if one.exposed_share is None else f"{one.exposed_share:.0%}",
}
# Shown where a GPU told its state.
DEVICE_COLUMNS: dict[str, Callable[[DeviceFigures], str]] = {
    "J a step": lambda one: formats.known(one.energy_j),
    "W": lambda one: formats.known(one.power_w),
    "MHz": lambda one: formats.known(one.clock_mhz),
    "at most °C": lambda one: formats.known(one.temperature_c),
    "clock limited by": lambda one: ", ".join(one.throttle_reasons),
}
DEVICE_LEGEND = (
    "The GPU during the windows, as its driver told it; energy by its own counter, where a window "
    "lasts a second. A power cap is how a busy GPU runs; thermal and hardware limits disturb."
)
BUDGET_LEGEND = (
    "Step budget in ms, adding up to the step: waiting for the batch, forward, backward, what "
    "collectives add unhidden, the optimizer's update, the rest (moving micro-batches, the loop)."
)
RANK_LEGEND = (
    "Each rank: what the one with the largest peak holds, peaks in MiB; collectives by kind with "
    "the MiB of the whole tensors; exposed: part of profiled steps in which one ran, a late rank "
    "was waited for, and nothing was computed (mean over ranks). Global batch xN: weak scaling, "
    "its speed-up is of throughput."
)
# Shown where the hardware's peak is known.
MFU_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "MFU": lambda one: formats.share(one.utilization),
    "HFU": lambda one: formats.share(one.hardware_utilization),
}
WAITING_SHARE = 0.05
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


def columns_of(table: Table) -> tuple[dict[str, Callable[[Figures], str]], list[str]]:
    """The columns that tell something here, and what the optional ones mean."""
    figures = [row.figures for row in table.rows if row.figures]
    optional = (
        (TYPICAL_COLUMNS, any(one.amortised for one in figures), TYPICAL_LEGEND),
        (UNDELAYED_COLUMNS, any(map(_delayed, figures)), UNDELAYED_LEGEND),
        (CPU_COLUMNS, any(map(_contended, figures)), CPU_LEGEND),
        (NARROW_COLUMNS, any(one.narrow_share for one in figures), NARROW_LEGEND),
        (LOADING_COLUMNS, _loading_matters(table), LOADING_LEGEND),
        (MFU_COLUMNS, bool(legend(table.run.machine)), legend(table.run.machine) or ""),
        (STATE_COLUMNS, _differ(STATE_COLUMNS, figures), STATE_LEGEND),
        (TRAINED_COLUMNS, _dead(figures) or _differ(TRAINED_COLUMNS, figures), TRAINED_LEGEND),
        (PROCESS_COLUMNS, any(map(_parted, figures)), PROCESS_LEGEND),
        (GROWTH_COLUMNS, any(one.growth_bytes_per_step for one in figures), GROWTH_LEGEND),
        (COMPILE_COLUMNS, any(one.compilation for one in figures), COMPILE_LEGEND),
        (SCALING_COLUMNS, any(one.scaling for one in figures), SCALING_LEGEND),
    )
    columns, legends = dict(COLUMNS), []
    for more, matters, means in optional:
        if matters:
            columns |= more
            legends.append(means)
    return columns, legends


def _delayed(figures: Figures) -> bool:
    undelayed_s = figures.undelayed_step_s
    return undelayed_s is not None and figures.step_s - undelayed_s > DELAYED_SHARE * figures.step_s


def _contended(figures: Figures) -> bool:
    """Whether something shared the processors, and there is processor time to tell."""
    shared = bool(figures.disturbances) or _delayed(figures)
    return shared and figures.cpu_speedup is not None


def _differ(columns: Mapping[str, Callable[[Figures], str]], figures: Sequence[Figures]) -> bool:
    return any(len({show(one) for one in figures}) > 1 for show in columns.values())


def _parted(one: Figures) -> bool:
    return (one.process_peak_bytes or 0) - one.peak_bytes > PARTED_BYTES


def _dead(figures: Sequence[Figures]) -> bool:
    """Whether weights had no gradient, which is to be told where it is so in all rows, too."""
    return any(one.trained_share is not None and one.trained_share < 1 for one in figures)


def _loading_matters(table: Table) -> bool:
    waits = {row.name: row.figures.data_wait_share for row in table.rows if row.figures}
    chosen = any("workers" in row.case.combination.techniques for row in table.rows)
    return None not in waits.values() and (
        chosen or any(wait > WAITING_SHARE for wait in waits.values() if wait is not None)
    )

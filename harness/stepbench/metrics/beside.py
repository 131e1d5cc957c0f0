"""A case beside its baseline: figures of a round, paired by it."""

from __future__ import annotations

from typing import Any

from stepbench.metrics.memory import PEAK_BYTES, WORKING_BYTES
from stepbench.metrics.metric import Metric
from stepbench.metrics.result import Result
from stepbench.metrics.summary import Read, largest_of_rounds, of_equal_batches, paired
from stepbench.metrics.time import ITEMS_PER_S, STEP_S
from stepbench.records.measurement import Measurement
from stepbench.records.run import Round
from stepbench.stats import measures


def ratio_of(metric: Metric[Measurement], key: str, about: str = "") -> Metric[Round]:
    """A metric of the case over the baseline's; None where one is absent or the baseline's is 0."""

    def ratio(one: Round) -> float | None:
        of_case, of_baseline = metric.read(one.case), metric.read(one.baseline)
        return None if of_case is None or not of_baseline else of_case / of_baseline

    return Metric(
        key=key,
        unit="ratio",
        better=metric.better,
        about=about or metric.about,
        read=ratio,
        summary=paired,
    )


def of_case(metric: Metric[Measurement]) -> Metric[Round]:
    """A metric of the case, as the number it is."""
    return Metric(
        key=metric.key,
        unit=metric.unit,
        better=metric.better,
        about=metric.about,
        read=lambda one: metric.read(one.case),
        summary=paired,
    )


THROUGHPUT_RATIO = ratio_of(
    ITEMS_PER_S, "throughput_ratio", "Items a second over the baseline's; above 1 is faster."
)


def _speedup(read: Read, result: Result) -> Any:
    """Of a case whose batch has grown: the ratio of throughputs."""
    grown = result.case.batch_factor != 1
    return paired(THROUGHPUT_RATIO.read if grown else read, result)


SPEEDUP = Metric[Round](
    key="speedup",
    unit="ratio",
    better="higher",
    about="The baseline's step over the case's, of the same batches; above 1 is faster.",
    read=lambda one: measures.step_ratio(one.baseline, one.case),
    summary=_speedup,
    gate=STEP_S.gate,
)


def _cpu_ratio(one: Round) -> float | None:
    """None on another device, and where loaders or ranks do a part of the work."""
    sides = one.case, one.baseline
    alone = all(not side.counters.loader_processes and not side.ranks for side in sides)
    told = all(side.environment.get("device") == "cpu" and any(side.cpu_s) for side in sides)
    if not alone or not told:
        return None
    return measures.cpu_s(one.baseline, one.case) / measures.cpu_s(one.case, one.baseline)


CPU_SPEEDUP = Metric[Round](
    key="cpu_speedup",
    unit="ratio",
    better="higher",
    about="The baseline's processor time of a step over the case's.",
    read=_cpu_ratio,
    summary=of_equal_batches(paired),
)
MEMORY_RATIO = ratio_of(
    PEAK_BYTES,
    "memory_ratio",
    "The peak of a steady step over the baseline's; below 1 needs less.",
)
WORKING_MEMORY_RATIO = ratio_of(
    WORKING_BYTES,
    "working_memory_ratio",
    "The peak beyond parameters and optimizer state over the baseline's.",
)
LOSS_DIFFERENCE = Metric[Round](
    key="loss_difference",
    unit="difference",
    better="lower",
    about="Largest relative difference of loss or gradient norm from the baseline, drift included.",
    read=lambda one: measures.drift(one.baseline, one.case),
    summary=of_equal_batches(largest_of_rounds),
)

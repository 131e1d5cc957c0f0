"""What a step's time is, where it goes, and what compiling takes beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from stepbench.metrics.metric import Metric, Paired
from stepbench.metrics.result import Result
from stepbench.metrics.summary import of_process
from stepbench.records.measurement import Compilation, Measurement
from stepbench.stats import measures

# What a step's time goes to, in order; "communication" is what collectives add unhidden.
PARTS = ("data", "forward", "backward", "communication", "update", "rest")

STEP_S = Metric[Measurement](
    key="step_s",
    unit="seconds",
    better="lower",
    about="One optimizer step, fetching its data included.",
    read=measures.step_s,
    gate=Paired(),
    asv="samples",
)
TYPICAL_STEP_S = Metric[Measurement](
    key="typical_step_s",
    unit="seconds",
    better="lower",
    about="The median step: without what comes only every so many steps.",
    read=measures.typical_step_s,
)
UNDELAYED_STEP_S = Metric[Measurement](
    key="undelayed_step_s",
    unit="seconds",
    better="lower",
    about="The mean step less what the process waited for a processor.",
    read=measures.undelayed_step_s,
)
ITEMS_PER_S = Metric[Measurement](
    key="tokens_per_s",
    unit="items/s",
    better="higher",
    about="Loss terms a second: tokens or images.",
    read=measures.items_per_s,
)
DATA_WAIT_SHARE = Metric[Measurement](
    key="data_wait_share",
    unit="share",
    better="lower",
    about="Part of the timed steps that waited for their batch.",
    read=lambda one: sum(one.data_wait_s) / sum(one.step_s) if one.data_wait_s else None,
)
EPOCH_PAUSE_S = Metric[Measurement](
    key="epoch_pause_s",
    unit="seconds",
    better="lower",
    about="From asking for an epoch's first batch to having it.",
    read=lambda one: one.epoch_pause_s if one.data_wait_s else None,
)
EXPOSED_SHARE = Metric[Measurement](
    key="exposed_share",
    unit="share",
    better="lower",
    about="Part of a profiled step in which a collective ran and nothing was computed.",
    read=lambda one: (
        one.communication.exposed_s / one.communication.step_s if one.communication else None
    ),
)
EXPOSED_COMMUNICATION_S = Metric[Measurement](
    key="exposed_communication_s",
    unit="seconds",
    better="lower",
    about="A step's time by the share of it in which a collective ran and nothing was computed.",
    read=lambda one: (
        measures.step_s(one) * one.communication.exposed_s / one.communication.step_s
        if one.communication
        else None
    ),
    asv="median",
)


def budget(processes: Sequence[Measurement]) -> dict[str, float] | None:
    """Seconds of the step by part; their shares are means over processes.

    None where a process marked nothing inside its steps.
    """
    if not all(process.parts_s for process in processes):
        return None
    step_s = statistics.median(map(measures.step_s, processes))
    shares = [_shares(process) for process in processes]
    return {part: step_s * statistics.fmean(one.get(part, 0.0) for one in shares) for part in PARTS}


def _shares(process: Measurement) -> dict[str, float]:
    """Parts of all timed steps' time, each less what was exposed communication in it."""
    total_s = sum(process.step_s)
    shares = {part: sum(times) / total_s for part, times in process.parts_s.items()}
    exposed = process.communication.exposed_shares if process.communication else {}
    moved = {part: shares[part] * share for part, share in exposed.items()}
    kept = {part: share - moved.get(part, 0.0) for part, share in shares.items()}
    return kept | {"communication": sum(moved.values())}


def _compiled_slowest(result: Result) -> Measurement | None:
    """The process, of all rounds, that took longest to compile."""
    times_s = {
        index: one.case.compilation.compile_s
        for index, one in enumerate(result.rounds)
        if one.case.compilation
    }
    return result.rounds[max(times_s, key=times_s.__getitem__)].case if times_s else None


def _compilation(one: Measurement, name: str) -> float | None:
    compilation: Compilation | None = one.compilation
    return None if compilation is None else getattr(compilation, name)


COMPILE_S = Metric[Measurement](
    key="compile_s",
    unit="seconds",
    better="lower",
    about="Time in the compiler, from empty caches; no part of a step.",
    read=lambda one: _compilation(one, "compile_s"),
    summary=of_process(_compiled_slowest),
    asv="samples",
)
GRAPHS = Metric[Measurement](
    key="graphs",
    unit="graphs",
    better="neither",
    about="Graphs that the compiler made.",
    read=lambda one: _compilation(one, "graphs"),
    summary=of_process(_compiled_slowest),
)
GRAPH_BREAKS = Metric[Measurement](
    key="graph_breaks",
    unit="breaks",
    better="lower",
    about="Where the compiler gave up and began anew.",
    read=lambda one: _compilation(one, "graph_breaks"),
    summary=of_process(_compiled_slowest),
    asv="largest",
)
RECOMPILES = Metric[Measurement](
    key="recompiles",
    unit="graphs",
    better="lower",
    about="Graphs made again for a frame that was compiled before.",
    read=lambda one: _compilation(one, "recompiles"),
    summary=of_process(_compiled_slowest),
    asv="largest",
)

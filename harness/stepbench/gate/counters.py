"""What no clock touches: a side's counts, bytes and losses, and how two sides' differ.

Counts have to repeat exactly. Bytes count where they differ by more than they did among the side's
own processes, and so do loss, gradient norm and update of each of the first steps: on a CPU with
equal threads they repeat to the last bit. None is better or worse, so a difference is told as
changed. At the same parameters it fails beyond the tolerance of the case's techniques, or beyond
`ROUNDING` where that is more: up to there another order of addition explains it, as after a
refactoring. How training then drifts may be chaos, and is told only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from stepbench import comparable
from stepbench.errors import StepbenchError
from stepbench.metrics.catalogue import METRICS
from stepbench.metrics.counts import FLOPS, OPERATORS
from stepbench.metrics.metric import BeyondSpread, Exact, Relative
from stepbench.records.measurement import Measurement
from stepbench.records.verdict import Difference, Tally, label
from stepbench.stats.measures import relative_difference

Range = tuple[float, float]

# Fresh processes a side: enough to see whether its bytes repeat.
PROCESSES = 3
# Relative difference that another order of float32 additions may make: what accumulation is allowed
# beside its baseline.
ROUNDING = 1e-3
# By their names in a tally. What sizes are made of stands beside them there: it explains a
# difference, and alone it is no verdict.
COUNTS = {one.gate_key: one for one in METRICS if isinstance(one.gate, Exact)}
SIZES = {one.gate_key: one for one in METRICS if isinstance(one.gate, BeyondSpread)}
VALUES = {one.gate_key: one for one in METRICS if isinstance(one.gate, Relative)}
# A difference of the others is told only.
FAILING = {one.gate_key for one in METRICS if isinstance(one.gate, Relative) and not one.gate.told}
# Lines of a diff; the rest is counted.
MOST_LINES = 8


def tally(measured: Sequence[Measurement]) -> Tally:
    """One side's tally from its fresh processes.

    Raises:
        StepbenchError: its counts did not repeat.
    """
    first = measured[0]
    if any(one.counters.counts != first.counters.counts for one in measured):
        raise StepbenchError("its operator counts differed between processes")
    sizes = [_bytes(one) for one in measured]
    names = [name for name in sizes[0] if all(name in one for one in sizes)]
    values = [
        {key: tuple(metric.parts_of(one).values()) for key, metric in VALUES.items()}
        for one in measured
    ]
    return Tally(
        counts=_whole({key: metric.read(first) for key, metric in COUNTS.items()}),
        operators=_whole(OPERATORS.parts_of(first)),
        flops_by_type=_whole(FLOPS.parts_of(first)),
        least_bytes={name: min(one[name] for one in sizes) for name in names},
        most_bytes={name: max(one[name] for one in sizes) for name in names},
        alike={
            **{key: first.environment.get(key) for key in comparable.COUNTERS},
            "memory": first.memory.method,
        },
        least_values=_each_step(min, values),
        most_values=_each_step(max, values),
        tolerance=first.loss_tolerance,
    )


def _each_step(
    choose: Callable[[Iterable[float]], float], values: Sequence[Mapping[str, tuple[float, ...]]]
) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(map(choose, zip(*(one[name] for one in values), strict=True)))
        for name in values[0]
    }


def _bytes(one: Measurement) -> dict[str, int]:
    """Each size that was observed, and what they are made of."""
    known = _whole({key: metric.read(one) for key, metric in SIZES.items()})
    parts = (metric.parts_of(one) for metric in SIZES.values())
    return known | {name: size for each in parts for name, size in _whole(each).items()}


def _whole(values: Mapping[str, float | None]) -> dict[str, int]:
    """Those that were observed, as whole numbers."""
    return {name: round(value) for name, value in values.items() if value is not None}


def differences(old: Tally, new: Tally) -> tuple[Difference, ...]:
    """What the new tally has that the old had not; of counts and bytes less is better."""
    return (*_counts(old, new), *_sizes(old, new), *_values(old, new))


def compared(old: Tally, new: Tally) -> tuple[str, ...]:
    """The figures that `differences` looks at."""
    sizes = [name for name in old.most_bytes if name in new.most_bytes and name in SIZES]
    values = [name for name in old.most_values if name in new.most_values]
    return (*old.counts, *sizes, *values)


def _counts(old: Tally, new: Tally) -> Iterator[Difference]:
    details = {
        OPERATORS.gate_key: (old.operators, new.operators),
        FLOPS.gate_key: (old.flops_by_type, new.flops_by_type),
    }
    for figure, before in old.counts.items():
        after = new.counts.get(figure, 0)
        parts = details.get(figure, ({}, {}))
        if before == after and parts[0] == parts[1]:
            continue
        yield Difference(
            figure=figure,
            change="worse" if after > before else "better" if after < before else "changed",
            unit="count",
            old=before,
            new=after,
            detail=_by_name(*parts),
        )


def _sizes(old: Tally, new: Tally) -> Iterator[Difference]:
    parts = [
        name
        for name in old.most_bytes
        if name in new.most_bytes and name not in SIZES and _beyond_spread(name, old, new)
    ]
    told = _by_name(*({label(name): one.most_bytes[name] for name in parts} for one in (old, new)))
    for figure in (name for name in compared(old, new) if name in old.most_bytes):
        if change := _beyond_spread(figure, old, new):
            yield Difference(
                figure=figure,
                change="worse" if change > 0 else "better",
                unit="bytes",
                old=old.most_bytes[figure],
                new=new.most_bytes[figure],
                detail=told if SIZES[figure].parts else (),
            )


def _beyond_spread(figure: str, old: Tally, new: Tally) -> int:
    """Bytes between the two sides' ranges, or 0."""
    before, after = ((one.least_bytes[figure], one.most_bytes[figure]) for one in (old, new))
    return int(_between(before, after))


def _values(old: Tally, new: Tally) -> Iterator[Difference]:
    allowed = max(old.tolerance, new.tolerance, ROUNDING)
    for figure in (name for name in compared(old, new) if name in old.most_values):
        changed = [
            (relative_difference([before[1]], [after[1]]), step, before[1], after[1])
            for step, (before, after) in enumerate(_of_each_step(figure, old, new), 1)
            if _between(before, after)
        ]
        if changed:
            off, step, before, after = max(changed)
            yield Difference(
                figure=figure,
                change="beyond tolerance" if off > allowed and figure in FAILING else "changed",
                unit="value",
                old=before,
                new=after,
                detail=(
                    f"at step {step}, where it is most: by {off:.1e} of it; rounding may make "
                    f"{allowed:.1e}; first at step {changed[0][1]}",
                ),
            )


def _of_each_step(figure: str, old: Tally, new: Tally) -> Iterator[tuple[Range, Range]]:
    """Of each step, the old side's range and the new one's."""
    before, after = (
        zip(one.least_values[figure], one.most_values[figure], strict=True) for one in (old, new)
    )
    return zip(before, after, strict=True)


def _between(old: Range, new: Range) -> float:
    """What lies between two ranges where that is more than either is wide; else 0."""
    (low, high), (new_low, new_high) = old, new
    spread = max(high - low, new_high - new_low)
    if new_low - high > spread:
        return new_low - high
    return new_high - low if low - new_high > spread else 0


def _by_name(old: Mapping[str, int], new: Mapping[str, int]) -> tuple[str, ...]:
    """`aten.mm: 12 -> 13 (+1)` for each name that differs, the largest difference first."""
    changes = {
        name: new.get(name, 0) - old.get(name, 0)
        for name in dict.fromkeys((*old, *new))
        if new.get(name, 0) != old.get(name, 0)
    }
    names = sorted(changes, key=lambda name: (-abs(changes[name]), name))
    lines = [
        f"{name}: {old.get(name, 0):,} -> {new.get(name, 0):,} ({changes[name]:+,})"
        for name in names[:MOST_LINES]
    ]
    if len(names) > MOST_LINES:
        lines.append(f"and {len(names) - MOST_LINES} more")
    return tuple(lines)

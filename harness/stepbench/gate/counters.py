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
from stepbench.records.measurement import Measurement
from stepbench.records.verdict import Difference, Tally, label
from stepbench.stats.measures import relative_difference

Range = tuple[float, float]

# Fresh processes a side: enough to see whether its bytes repeat.
PROCESSES = 3
# What a step's peak is made of explains it; alone it is no verdict.
PARTS = ("parameters", "gradients", "optimizer_state", "activations_and_temporaries")
# Relative difference that another order of float32 additions may make: what accumulation is allowed
# beside its baseline.
ROUNDING = 1e-3
# The loss of steps that trained on.
DRIFT = "loss_after_updates"
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
    values = [_first_steps(one) for one in measured]
    return Tally(
        counts={
            "operators": sum(first.counters.operators.values()),
            "flops": first.counters.flops,
            "recomputed_products": first.counters.recomputed_products,
        },
        operators=dict(first.counters.operators),
        flops_by_type=dict(first.counters.matmul_flops),
        least_bytes={name: min(one[name] for one in sizes) for name in sizes[0]},
        most_bytes={name: max(one[name] for one in sizes) for name in sizes[0]},
        alike={
            **{key: first.environment.get(key) for key in comparable.COUNTERS},
            "memory": first.memory.method,
        },
        least_values=_each_step(min, values),
        most_values=_each_step(max, values),
        tolerance=first.loss_tolerance,
    )


def _first_steps(one: Measurement) -> dict[str, tuple[float, ...]]:
    same = one.same_parameter_steps or len(one.losses)
    return {
        "loss": one.losses[:same],
        "gradient_norm": one.grad_norms[:same],
        "update": one.descents,
        DRIFT: one.losses[same:],
    }


def _each_step(
    choose: Callable[[Iterable[float]], float], values: Sequence[Mapping[str, tuple[float, ...]]]
) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(map(choose, zip(*(one[name] for one in values), strict=True)))
        for name in values[0]
    }


def _bytes(one: Measurement) -> dict[str, int]:
    memory, growth = one.memory, one.growth_bytes_per_step
    return {
        **({} if growth is None else {"growth_per_step": round(growth)}),
        "build_peak": memory.build.allocated_bytes,
        "first_step_peak": memory.first_step.allocated_bytes,
        "steady_peak": memory.steady_step.allocated_bytes,
        "saved_for_backward": one.counters.saved_bytes,
        "parameters": memory.parameter_bytes,
        "gradients": memory.gradient_bytes,
        "optimizer_state": memory.optimizer_bytes,
        "activations_and_temporaries": memory.working_bytes,
    }


def differences(old: Tally, new: Tally) -> tuple[Difference, ...]:
    """What the new tally has that the old had not; of counts and bytes less is better."""
    return (*_counts(old, new), *_sizes(old, new), *_values(old, new))


def compared(old: Tally, new: Tally) -> tuple[str, ...]:
    """The figures that `differences` looks at."""
    sizes = [name for name in old.most_bytes if name in new.most_bytes and name not in PARTS]
    values = [name for name in old.most_values if name in new.most_values]
    return (*old.counts, *sizes, *values)


def _counts(old: Tally, new: Tally) -> Iterator[Difference]:
    details = {
        "operators": (old.operators, new.operators),
        "flops": (old.flops_by_type, new.flops_by_type),
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
    parts = [name for name in PARTS if _beyond_spread(name, old, new)]
    told = _by_name(*({label(name): one.most_bytes[name] for name in parts} for one in (old, new)))
    for figure in (name for name in compared(old, new) if name in old.most_bytes):
        if change := _beyond_spread(figure, old, new):
            yield Difference(
                figure=figure,
                change="worse" if change > 0 else "better",
                unit="bytes",
                old=old.most_bytes[figure],
                new=new.most_bytes[figure],
                detail=told if figure == "steady_peak" else (),
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
                change="beyond tolerance" if off > allowed and figure != DRIFT else "changed",
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

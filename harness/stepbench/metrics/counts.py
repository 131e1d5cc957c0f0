"""What was counted in one step of the eager program, and the first steps' losses and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stepbench.metrics.metric import Exact, Metric, Relative, Unit
from stepbench.metrics.result import Result
from stepbench.metrics.summary import Read, first, of_process
from stepbench.records.measurement import Counters, Measurement

# The gate tells them in this order.
OPERATORS = Metric[Measurement](
    key="operators",
    unit="calls",
    better="lower",
    about="Operators dispatched in one step of the eager program.",
    read=lambda one: sum(one.counters.operators.values()),
    parts=lambda one: one.counters.operators,
    gate=Exact(),
    asv="largest",
)
FLOPS = Metric[Measurement](
    key="flops",
    unit="FLOP",
    better="lower",
    about="Floating-point operations of one step, recomputed ones included.",
    read=lambda one: one.counters.flops,
    parts=lambda one: one.counters.matmul_flops,
    gate=Exact(),
    asv="largest",
)
RECOMPUTED_PRODUCTS = Metric[Measurement](
    key="recomputed_products",
    unit="calls",
    better="lower",
    about="Matrix products, convolutions and attention that ran during a recomputation.",
    read=lambda one: one.counters.recomputed_products,
    gate=Exact(),
)


def _exchanged(_: Read, result: Result) -> dict[str, tuple[int, int]]:
    """Calls and bytes of each kind, of the first process."""
    counters = result.processes[0].counters
    return {
        kind: (calls, counters.collective_bytes[kind])
        for kind, calls in counters.collective_calls.items()
    }


COLLECTIVES = Metric[Measurement](
    key="collectives",
    unit="calls",
    better="lower",
    about="Collectives that a rank takes part in, in one step.",
    read=lambda one: sum(one.counters.collective_calls.values()),
    parts=lambda one: one.counters.collective_calls,
    summary=_exchanged,
    asv="largest",
)
COLLECTIVE_BYTES = Metric[Measurement](
    key="collective_bytes",
    unit="bytes",
    better="lower",
    about="What they work on, the whole tensor of each.",
    read=lambda one: sum(one.counters.collective_bytes.values()),
    parts=lambda one: one.counters.collective_bytes,
    asv="largest",
)


def _narrow_share(one: Measurement) -> float | None:
    flops = one.counters.matmul_flops
    total = sum(flops.values())
    return (flops.get("float16", 0) + flops.get("bfloat16", 0)) / total if total else None


NARROW_SHARE = Metric[Measurement](
    key="narrow_share",
    unit="share",
    better="neither",
    about="Part of the products' FLOPs that had inputs of 16 bits.",
    read=_narrow_share,
    summary=first,
)


def _skipped_most(result: Result) -> Measurement | None:
    """The process whose first steps overflowed most often."""
    cases = [one.case for one in result.judged]
    return max(cases, key=lambda one: one.skipped_steps, default=None)


def _in_float16(one: Measurement) -> Counters | None:
    return one.counters if "float16" in one.counters.matmul_flops else None


LOSS_SCALE = Metric[Measurement](
    key="loss_scale",
    unit="value",
    better="neither",
    about="Factor of the loss in the step that was counted.",
    read=lambda one: counters.loss_scale if (counters := _in_float16(one)) else None,
    summary=of_process(_skipped_most),
)
SKIPPED_STEPS = Metric[Measurement](
    key="skipped_steps",
    unit="count",
    better="lower",
    about="First steps that overflowed and lowered the scale.",
    read=lambda one: one.skipped_steps if _in_float16(one) else None,
    summary=of_process(_skipped_most),
)
ZERO_GRADIENTS = Metric[Measurement](
    key="zero_gradients",
    unit="share",
    better="lower",
    about="Part of the gradients' elements that were exactly 0.",
    read=lambda one: counters.zero_gradients if (counters := _in_float16(one)) else None,
    summary=of_process(_skipped_most),
)


def _counter(
    key: str, about: str, read: Callable[[Counters], int], unit: Unit = "count"
) -> Metric[Measurement]:
    """A count that tells how a technique works: neither more nor less of it is better."""
    return Metric(
        key=key, unit=unit, better="neither", about=about, read=lambda one: read(one.counters)
    )


FORWARDS = _counter("forwards", "Micro-batches that went forward.", lambda one: one.forwards)
UPDATES = _counter("updates", "Optimizer updates.", lambda one: one.updates)
MATMUL_FLOPS = _counter(
    "matmul_flops",
    "Floating-point operations of forward and backward matrix products and attention.",
    lambda one: sum(one.matmul_flops.values()),
    unit="FLOP",
)
BLOCKS = _counter("blocks", "Repeated blocks in the model.", lambda one: one.blocks)
RECOMPUTED_BLOCKS = _counter(
    "recomputed_blocks",
    "Blocks whose forward ran again during backward, as often as it did.",
    lambda one: len(one.recomputed_blocks),
)
LOADER_PROCESSES = _counter(
    "loader_processes",
    "Worker processes that loaded batches.",
    lambda one: one.loader_processes,
)
BATCHES_AHEAD = _counter(
    "batches_ahead",
    "Most batches that were under way while a step ran.",
    lambda one: one.batches_ahead,
)
EPOCH_BATCHES = _counter("epoch_batches", "Batches in one epoch.", lambda one: one.epoch_batches)


def calls_of(operator: str) -> Metric[Measurement]:
    """How often one operator was dispatched in a step, by its name, as `aten.mm`."""
    about = f"Calls of {operator} in one step of the eager program."
    return _counter(operator, about, lambda one: one.operators.get(operator, 0), unit="calls")


def _by_step(values: Sequence[float]) -> dict[str, float]:
    return {str(step): value for step, value in enumerate(values, 1)}


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None


def _at_same_parameters(one: Measurement, values: Sequence[float]) -> Sequence[float]:
    return values[: one.same_parameter_steps or len(one.losses)]


def _after_updates(one: Measurement) -> Sequence[float]:
    return one.losses[one.same_parameter_steps or len(one.losses) :]


LOSS = Metric[Measurement](
    key="loss",
    unit="value",
    better="neither",
    about="Of the first steps, each at the initial parameters.",
    read=lambda one: _last(_at_same_parameters(one, one.losses)),
    parts=lambda one: _by_step(_at_same_parameters(one, one.losses)),
    gate=Relative(),
)
GRADIENT_NORM = Metric[Measurement](
    key="gradient_norm",
    unit="value",
    better="neither",
    about="Of the first steps' unscaled gradients, each at the initial parameters.",
    read=lambda one: _last(_at_same_parameters(one, one.grad_norms)),
    parts=lambda one: _by_step(_at_same_parameters(one, one.grad_norms)),
    gate=Relative(),
)
UPDATE = Metric[Measurement](
    key="update",
    unit="value",
    better="neither",
    about="How far the first updates led along the gradient.",
    read=lambda one: _last(one.descents),
    parts=lambda one: _by_step(one.descents),
    gate=Relative(),
)
LOSS_AFTER_UPDATES = Metric[Measurement](
    key="loss_after_updates",
    unit="value",
    better="neither",
    about="The loss of steps that trained on, which may drift.",
    read=lambda one: _last(_after_updates(one)),
    parts=lambda one: _by_step(_after_updates(one)),
    gate=Relative(told=True),
)

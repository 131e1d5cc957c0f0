"""What steadies training: clipped gradients, and a learning rate that warms up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch.optim.lr_scheduler import LinearLR

from stepbench.errors import StepbenchError
from stepbench.records.measurement import Counters
from stepbench.training.types import Axis, Loop, Plan, Site, Technique

# Norms are sums in another order.
SAME_NORM = 1e-3


def clip(norm: int) -> Technique:
    """`clipN`: the gradient of all parameters together is scaled down to a norm of at most N."""
    if norm < 1:
        raise StepbenchError(f"clip{norm}: a norm must be at least 1")
    return Technique(
        name=f"clip{norm}",
        about=f"gradients scaled down to a norm of at most {norm}, unscaled before",
        plan=lambda plan: replace(plan, max_grad_norm=float(norm)),
        proof=_proof_clipped,
        tolerance=lambda workload: None,
    )


def _proof_clipped(counters: Counters, plan: Plan) -> str | None:
    assert plan.max_grad_norm is not None
    if "aten.clamp" not in counters.operators:
        return "nothing was clamped in a step"
    return _proof_norm(counters, plan)


def _proof_norm(counters: Counters, plan: Plan) -> str | None:
    """The optimizer was given the gradient that backward left, clipped if the plan says so."""
    before, applied = counters.gradient_norm, counters.applied_norm
    if before is None or applied is None:
        return None
    expected = min(before, plan.max_grad_norm or before)
    if abs(applied - expected) > SAME_NORM * expected:
        return f"the optimizer was given gradients of norm {applied:g}, not {expected:g}"
    return None


def warm_up(updates: int) -> Technique:
    """`warmupN`: update k of the first N is at k/N of the rate."""
    if updates < 2:
        raise StepbenchError(
            f"warmup{updates}: the rate is reached in at least 2 updates; 1 is constant-rate"
        )
    return Technique(
        name=f"warmup{updates}",
        about=f"learning rate from 1/{updates} of itself in {updates} equal steps",
        loop=_warming(updates),
        proof=_proof_warming(updates),
        tolerance=lambda workload: None,
    )


def _warming(updates: int) -> Callable[[Loop, Site], Loop]:
    def edit(loop: Loop, site: Site) -> Loop:
        rate = LinearLR(loop.optimizer, start_factor=1 / updates, total_iters=updates - 1)

        def update() -> None:
            if rate.last_epoch >= updates:
                loop.update()
                return
            # Reading the scale waits for the device, until the rate is reached.
            before = loop.loss_scale() if site.plan.scale_loss else 0.0
            loop.update()
            if not site.plan.scale_loss or loop.loss_scale() >= before:
                rate.step()

        return replace(loop, update=update)

    return edit


def _proof_warming(updates: int) -> Callable[[Counters, Plan], str | None]:
    def proof(counters: Counters, plan: Plan) -> str | None:
        for rates in _of_all_groups(counters):
            shares = [min(1.0, (index + 1) / updates) for index in range(len(rates))]
            for rate, share in zip(rates, shares, strict=True):
                expected = rates[-1] * share / shares[-1]
                if abs(rate - expected) > 1e-5 * expected:
                    return _told(rates)
        return None

    return proof


def _proof_constant(counters: Counters, plan: Plan) -> str | None:
    changing = (rates for rates in _of_all_groups(counters) if len(set(rates)) > 1)
    return next(map(_told, changing), None)


def _of_all_groups(counters: Counters) -> tuple[tuple[float, ...], ...]:
    return (counters.learning_rates, *counters.other_learning_rates)


def _told(rates: Sequence[float]) -> str:
    return f"the first updates were at the rates {', '.join(f'{one:g}' for one in rates)}"


CLIPPING = Axis(
    name="clipping",
    baseline="unclipped",
    examples=("unclipped", "clip1"),
    techniques=(
        Technique(
            name="unclipped",
            about="gradients as they are",
            proof=_proof_norm,
        ),
    ),
    families={"clip": clip},
)

SCHEDULE = Axis(
    name="schedule",
    baseline="constant-rate",
    examples=("constant-rate", "warmup4"),
    techniques=(
        Technique(
            name="constant-rate",
            about="the learning rate that the optimizer was made with",
            proof=_proof_constant,
        ),
    ),
    families={"warmup": warm_up},
)

"""Whether the loss is right: loss, gradient norm and update of the first applied steps.

The norm is of the unscaled, unclipped gradient: an optimizer like AdamW divides a wrong factor out
of the loss again, the norm keeps it. The first steps all begin at the initial parameters, which are
put back before each: several updates in a row can be chaos, where the smallest difference in
rounding grows until it says nothing about the technique. The optimizer's state goes on meanwhile.
The steps after them train on, and show how far that drifts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stepbench.measuring.probes.memory import entries
from stepbench.training.data import HostBatch
from stepbench.training.step import train_step
from stepbench.training.types import Batch, Loop, Site

# Steps that begin at the initial parameters, and those that then train on.
SAME_PARAMETER_STEPS, DRIFT_STEPS = 3, 5
# A scaler that starts at 2^16 has nothing left to halve after so many.
MOST_SKIPS = 24


@dataclass(slots=True, kw_only=True)
class Parity:
    """What the observed steps showed; `skipped` counts steps that the loss scaler did not apply.

    `descents` are of the updates from the initial parameters but the first: its memory is watched.
    """

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    descents: list[float] = field(default_factory=list)
    learning_rates: list[tuple[float, ...]] = field(default_factory=list)  # of each group
    skipped: int = 0

    def observe(self, loop: Loop, host: HostBatch, site: Site) -> None:
        """Step on one global batch until a step is applied, and keep that step's figures."""
        draws = _random_state(site)
        # After a step that was never applied, the scale has nothing left for another.
        hopeless = bool(self.losses) and math.isnan(self.losses[-1])
        for _ in range(0 if hopeless else MOST_SKIPS):
            # A repeated batch meets the same dropout.
            draws()
            before = loop.loss_scale()
            rates = tuple(float(group["lr"]) for group in loop.optimizer.param_groups)
            loss, norm = _observed_step(loop, host, site)
            if loop.loss_scale() >= before:
                self.losses.append(loss)
                self.grad_norms.append(norm)
                self.learning_rates.append(rates)
                return
            self.skipped += 1
        self.losses.append(float("nan"))
        self.grad_norms.append(float("nan"))

    def objection(self) -> str | None:
        """The first step whose loss or gradient norm is not finite, or None."""
        figures = enumerate(zip(self.losses, self.grad_norms, strict=True), start=1)
        for step, (loss, norm) in figures:
            if not torch.tensor([loss, norm]).isfinite().all():
                return f"step {step} had loss {loss:g} and gradient norm {norm:g}"
        return None


def _random_state(site: Site) -> Callable[[], None]:
    """What puts torch's generators back to where they are now."""
    host = torch.get_rng_state()
    device = torch.cuda.get_rng_state(site.device) if site.device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(host)
        if device is not None:
            torch.cuda.set_rng_state(device, site.device)

    return restore


def _observed_step(loop: Loop, host: HostBatch, site: Site) -> tuple[float, float]:
    losses: list[Tensor] = []
    norms: list[Tensor] = []

    def forward(batch: Batch) -> Tensor:
        loss = loop.forward(batch)
        losses.append(loss.detach())
        return loss

    train_step(replace(loop, forward=forward, update=_normed(loop, norms)), host, site)
    return float(sum(losses)), float(norms[0])


def whole_norm(model: nn.Module) -> Tensor:
    """Norm of all gradients together, those of other ranks' shards included."""
    gradients = [entries(p.grad) for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _normed(loop: Loop, norms: list[Tensor]) -> Callable[[], None]:
    def update() -> None:
        norms.append(whole_norm(loop.model) / loop.loss_scale())
        loop.update()

    return update

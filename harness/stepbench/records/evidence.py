"""What shows that the timed steps trained as the case says, observed beside the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from stepbench.records.jsonable import Jsonable


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence(Jsonable):
    """Of the timed steps, and of one step that was watched module by module.

    Attributes:
        begins: optimizer steps that were run before the first timed one.
        losses: of each timed step; of several ranks, the mean.
        parameter_norm: norm of all parameters together after the last timed step (this rank's
            part).
        changed: how many parameters the timed steps changed.
        unchanged: parameters and buffers that the timed steps left as they were, by name.
        evaluating: modules that were called while they were not in training mode.
        attention_calls: calls of torch's `scaled_dot_product_attention` in a forward pass, by the
            operator that computed them; recomputed ones are not counted.
        wide_modules: modules of which a forward product had inputs of 32 bits or more; batched
            ones not counted where an attention kernel was chosen, which may be made of them.
        uncompiled_modules: modules whose forward `torch.compiler.disable` keeps from compilation.
        narrow_modules: modules all of whose forward products plain autocast computes in 16 bits;
            seen of the baseline only, in a step of its own.
    """

    begins: int
    losses: tuple[float, ...]
    parameter_norm: float
    changed: int
    unchanged: tuple[str, ...] = ()
    evaluating: tuple[str, ...] = ()
    attention_calls: Mapping[str, int] = field(default_factory=dict)
    wide_modules: tuple[str, ...] = ()
    narrow_modules: tuple[str, ...] = ()
    uncompiled_modules: tuple[str, ...] = ()

    def objection(self) -> str | None:
        """Why the timed steps trained nothing that counts, or None."""
        for step, loss in enumerate(self.losses, start=1):
            if not math.isfinite(loss):
                return f"timed step {step} had loss {loss:g}"
        if not math.isfinite(self.parameter_norm):
            return "the timed steps left parameters that are not finite"
        return None if self.changed else "the timed steps changed no parameter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition(Jsonable):
    """The same steps in another fresh process that timed nothing.

    Attributes:
        losses: of the steps that the first process timed; of several ranks, the mean.
        parameter_norm: norm of all parameters together after the last of them.
        wrong_batch: which batch was not what (seed, epoch, index) says, or None.
        randomness: relative difference of loss or gradient norm of two steps on the same batch
            from the same parameters; 0.0 where nothing is drawn.
    """

    losses: tuple[float, ...]
    parameter_norm: float
    wrong_batch: str | None
    randomness: float

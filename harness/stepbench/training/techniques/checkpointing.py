"""Activation checkpointing: forget a block's activations, run its forward again in backward.

Always non-reentrant. A block's forward is replaced through its class, so that the block stays
where the workload finds it and replicas keep the replacement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from stepbench.records.measurement import Counters
from stepbench.training.products import is_product
from stepbench.training.types import Axis, Plan, Site, Technique, Unsupported


def _replace_forward(block: nn.Module, forward: Callable[..., Any]) -> None:
    kind = type(block)
    block.__class__ = type(f"Checkpointed{kind.__name__}", (kind,), {"forward": forward})


def _checkpoint_segment(blocks: Sequence[nn.Module], **options: Any) -> None:
    """Let the first block run all of them under one checkpoint, and the others pass on."""
    first, *others = blocks
    kinds = [(type(block), block) for block in others]
    first_kind = type(first)

    def run_all(*arguments: Any, **named: Any) -> Any:
        hidden = first_kind.forward(first, *arguments, **named)
        for kind, block in kinds:
            hidden = kind.forward(block, hidden, *arguments[1:], **named)
        return hidden

    def lead(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        return checkpoint(run_all, *arguments, use_reentrant=False, **options, **named)

    _replace_forward(first, lead)
    for block in others:
        _replace_forward(block, lambda self, hidden, *_, **__: hidden)


def _checkpointed(
    segments: Callable[[int], list[range]], **options: Any
) -> Callable[[nn.Module, Site], nn.Module]:
    def edit(model: nn.Module, site: Site) -> nn.Module:
        blocks = site.workload.blocks(model)
        if not blocks:
            raise Unsupported(
                f"{site.workload.name} names no repeated blocks; tell them by Workload(blocks=…)"
            )
        if not segments(len(blocks)):
            raise Unsupported(
                f"{site.workload.name} has {len(blocks)} repeated blocks: too few to checkpoint so"
            )
        for segment in segments(len(blocks)):
            _checkpoint_segment([blocks[index] for index in segment], **options)
        return model

    return edit


def _proof(
    segments: Callable[[int], list[range]], *, products_again: bool = True
) -> Callable[[Counters, Plan], str | None]:
    """Backward recomputes each segment from its beginning as it meets it.

    Frozen blocks before what is trained, and blocks that did not run, it never meets.
    """

    def proof(counters: Counters, plan: Plan) -> str | None:
        last_of = {segment[-1]: segment for segment in segments(counters.blocks)}
        met = [last_of[index] for index in counters.backward_blocks if index in last_of]
        if last_of and not met:
            raise Unsupported("backward meets no block that it would recompute: they are frozen")
        expected = [index for segment in met for index in segment]
        seen = list(counters.recomputed_blocks)
        if seen != expected:
            return f"backward recomputed blocks {_brief(seen)}, not {_brief(expected)}"
        if not products_again and counters.recomputed_products:
            return f"{counters.recomputed_products} kept matrix products were computed again"
        return None

    return proof


def _brief(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:12]))
    return f"[{shown}{', …' if len(indices) > 12 else ''}] ({len(indices)})"


def every(period: int) -> Technique:
    """`ckptK`: blocks K, 2K, … each checkpointed alone (counted from 1); `ckpt0`: none."""
    if period == 0:
        return Technique(
            name="ckpt0", about="keep every activation", proof=_proof(lambda blocks: [])
        )

    def segments(blocks: int) -> list[range]:
        return [range(last, last + 1) for last in range(period - 1, blocks, period)]

    which = "every block" if period == 1 else f"blocks {period}, {2 * period}, …"
    return Technique(
        name=f"ckpt{period}",
        about=f"recompute {which}",
        model=_checkpointed(segments),
        proof=_proof(segments),
    )


def square_root_segments(blocks: int) -> list[range]:
    """√N contiguous segments of nearly equal length (Chen et al. 2016, arXiv:1604.06174)."""
    count = round(math.sqrt(blocks))
    edges = [round(index * blocks / count) for index in range(count + 1)] if count else []
    return [range(low, high) for low, high in pairwise(edges)]


def _single_blocks(blocks: int) -> list[range]:
    return [range(index, index + 1) for index in range(blocks)]


def _keep_products(context: Any, operator: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_product(operator) else CheckpointPolicy.PREFER_RECOMPUTE


CHECKPOINTING = Axis(
    name="checkpointing",
    baseline="ckpt0",
    inside=True,
    examples=("ckpt0", "ckpt1", "ckpt2", "ckpt3", "ckpt-sqrt", "ckpt-selective"),
    techniques=(
        every(0),
        Technique(
            name="ckpt-sqrt",
            about="recompute √N contiguous segments of blocks",
            model=_checkpointed(square_root_segments),
            proof=_proof(square_root_segments),
        ),
        Technique(
            name="ckpt-selective",
            about="recompute every block but its matrix products and attention, which are kept",
            model=_checkpointed(
                _single_blocks,
                context_fn=partial(create_selective_checkpoint_contexts, _keep_products),
            ),
            proof=_proof(_single_blocks, products_again=False),
        ),
    ),
    families={"ckpt": every},
)

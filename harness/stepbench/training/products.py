"""Matrix products, convolutions and attention: the operators whose cost is worth counting.

What selective checkpointing keeps and what the FLOP counter counts is one list: torch's own, with
the fused CPU attention that it leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(grad_out: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad_out.shape, query.shape, key.shape, value.shape))


# torch's formulas take shapes or tensors and want the result; these two never look at it.
_CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def is_product(operator: Any) -> bool:
    """Whether a dispatched operator (an overload) is a matrix product, convolution or attention."""
    packet = operator._overloadpacket
    return packet in _CPU_ATTENTION or packet in flop_registry


def is_batched(operator: Any) -> bool:
    """Whether it is many small products in one, of which attention is made that no kernel fuses."""
    return operator._overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def recomputed_score_flops(
    operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any
) -> int:
    """Of those of an attention kernel's backward pass, the ones of scores that forward has had.

    torch counts five products: the scores (of the head size of query and key, `d`), and the
    gradients of scores and value (of value's head size `v`), query and key (of `d`).
    """
    if "attention" not in (name := str(operator._overloadpacket)) or "backward" not in name:
        return 0
    of_query, of_value = arguments[1].shape[-1], arguments[3].shape[-1]
    all_products = flops(operator, arguments, named, result)
    return int(all_products * of_query // (3 * of_query + 2 * of_value))


def flops(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> int:
    """Floating-point operations of one call (2 per multiply-add); 0 if it is not a product."""
    packet = operator._overloadpacket
    if packet in _CPU_ATTENTION:
        return _CPU_ATTENTION[packet](*arguments, **named)
    if packet in flop_registry:
        return int(flop_registry[packet](*arguments, **named, out_val=result))
    return 0

"""Kernels and calls of libraries that published figures are of, timed alone.

Each is measured on a device, its sizes divided by a whole number for devices that are too slow.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepbench.measuring.calibrate import host_to_device, run_s
from stepbench.training.workloads.gpt import GPT, SHAPES

TOKENS, HEADS, HEAD = 16384, 16, 128
KERNELS = {
    "standard": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}

Measured = dict[str, Any]  # `value` in the figure's unit, and the `parts` it comes from, by name
Measure = Callable[[torch.device, int], Measured]


def product_flops(rows: int, columns: int, inner: int) -> int:
    """A multiplication and an addition for each element of each row and column."""
    return 2 * rows * columns * inner


def attention_flops(batch: int, heads: int, length: int, head: int) -> int:
    """Forward, without a causal mask: QK^T and its product with V, 2 FLOPs each: 4·B·H·T·T·D."""
    return 4 * batch * heads * length * length * head


def product(rows: int, columns: int, inner: int) -> Measure:
    """TFLOP/s of a bf16 product, rows x inner by inner x columns."""

    def measure(device: torch.device, smaller: int) -> Measured:
        m, n, k = (size // smaller for size in (rows, columns, inner))
        left, right = _normal(device, m, k), _normal(device, k, n)
        return _rate(product_flops(m, n, k), run_s(lambda: left @ right, device))

    return measure


def attention(kernel: str, length: int) -> Measure:
    """TFLOP/s of attention's forward in bf16, on 16384 tokens in sequences of a length."""

    def measure(device: torch.device, smaller: int) -> Measured:
        shape = (TOKENS // length, HEADS, length // smaller, HEAD)
        query, key, value = (_normal(device, *shape) for _ in range(3))
        # Else the math kernel computes in float32, off the tensor cores: no standard attention.
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        with sdpa_kernel(KERNELS[kernel]):
            seconds = run_s(
                lambda: functional.scaled_dot_product_attention(query, key, value), device
            )
        return _rate(attention_flops(*shape), seconds)

    return measure


def float8_linear(rows: int, inner: int, columns: int) -> Measure:
    """How much faster torchao's linear layer is than one in bf16, forward and backward.

    Tensors are scaled one by one, by their present maximum (tensor-wise dynamic scaling).
    """

    def measure(device: torch.device, smaller: int) -> Measured:
        from torchao.float8 import convert_to_float8_training

        m, k, n = (size // smaller for size in (rows, inner, columns))
        given = _normal(device, m, k).requires_grad_()
        gradient = _normal(device, m, n)
        plain = nn.Sequential(nn.Linear(k, n, bias=False)).to(device, torch.bfloat16)
        seconds = []
        for model in (plain, convert_to_float8_training(copy.deepcopy(plain))):
            wanted = (given, *model.parameters())
            # The README's is compiled; on a CPU that would take longer than all the rest.
            called = torch.compile(model) if device.type == "cuda" else model

            def step(called: Any = called, wanted: Any = wanted) -> None:
                torch.autograd.grad(called(given), wanted, gradient)

            seconds.append(run_s(step, device))
        return _speedup(bf16=seconds[0], fp8=seconds[1])

    return measure


def copies(device: torch.device, smaller: int) -> Measured:
    """How much faster copies to the device are from pinned memory; their size is the same."""
    pinned, pageable = (host_to_device(device, pinned) for pinned in (True, False))
    parts = {"GB/s pinned": pinned / 1e9, "GB/s pageable": pageable / 1e9}
    return {"value": pinned / pageable, "parts": parts}


def adam(device: torch.device, smaller: int) -> Measured:
    """How much faster AdamW's fused update is than foreach's, on gpt-124m's parameters."""
    with torch.device("meta"):
        shapes = [one.shape for one in GPT(SHAPES["gpt-124m"]).parameters()]

    def update_s(**implementation: Any) -> float:
        small = [(-(-rows // smaller), *rest) for rows, *rest in shapes]
        held = [nn.Parameter(torch.randn(*one, device=device)) for one in small]
        for one in held:
            one.grad = torch.randn_like(one)
        return run_s(torch.optim.AdamW(held, **implementation).step, device)

    return _speedup(foreach=update_s(foreach=True), fused=update_s(fused=True))


def _normal(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def _rate(flops: int, seconds: float) -> Measured:
    return {"value": flops / seconds / 1e12, "parts": {"ms": 1e3 * seconds}}


def _speedup(**seconds: float) -> Measured:
    """How much longer the first takes than the second."""
    before, after = seconds.values()
    parts = {f"ms {name}": 1e3 * one for name, one in seconds.items()}
    return {"value": before / after, "parts": parts}

"""The type in which matrix products, convolutions and attention are computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Counters
from stepbench.training.types import Axis, Plan, Site, Technique, Unsupported

# float32 products err by about 1e-7 against float64 (fast convolutions by 1e-6, 50,304 terms added
# one after another by 4e-6), TF32's 10-bit mantissa by about 3e-4.
TF32_ERROR = 3e-5
# A loss that is not scaled goes backward as it is, up to a rounding error of its own type.
SCALED = 1.01
# Of the products outside attention: what a model keeps in 32 bits on purpose is less.
LEAST_SHARE = 0.75
# Types that autocast leaves as they are, by how their names begin.
LEFT = ("float64", "complex")


def _float32_products(tf32: bool) -> Any:
    def set_backends(model: nn.Module, site: Site) -> nn.Module:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        cudnn: Any = torch.backends.cudnn
        # The older switch first: torch refuses to read it, or to enter `cudnn.flags`, where it is
        # not what the newer two say; set to False it leaves them to inherit what somebody else set.
        cudnn.allow_tf32 = tf32
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if tf32 else "ieee"
        return model

    return set_backends


def _share(flops: Mapping[str, int], dtype: str) -> float:
    """Of the products that precision decides about: 8-bit ones are quantization's."""
    decided = {kind: one for kind, one in flops.items() if not kind.startswith(("float8", *LEFT))}
    if not decided and flops:
        return 1.0
    total = sum(decided.values())
    return decided.get(dtype, 0) / total if total else 0.0


def _outside_attention(counters: Counters) -> Mapping[str, int]:
    """All products where nothing is left without batched ones.

    torch computes attention that no kernel fuses in float32 whatever it is given: most of the
    products, of long sequences (`_scaled_dot_product_attention_math` in ATen's attention.cpp).
    """
    others = Counter(counters.matmul_flops)
    others.subtract(counters.batched_flops)
    return +others or counters.matmul_flops


def _proof_float32(counters: Counters, plan: Plan) -> str | None:
    if counters.loss_scale > SCALED:
        return f"the loss went backward at scale {counters.loss_scale:g}: it was scaled"
    if counters.matmul_flops and (share := _share(counters.matmul_flops, "float32")) < 1.0:
        return f"only {share:.0%} of the matrix products had float32 inputs"
    if counters.matmul_error is not None and counters.matmul_error > TF32_ERROR:
        return f"float32 products erred by {counters.matmul_error:.0e}: they ran in TF32"
    return None


def _proof_tf32(counters: Counters, plan: Plan) -> str | None:
    if counters.matmul_error is None:
        raise Unsupported("the model has no float32 products to compute in TensorFloat-32")
    if counters.matmul_error <= TF32_ERROR:
        return f"float32 products erred by {counters.matmul_error}: they did not run in TF32"
    return None


def _proof_16_bit(dtype: str, scaled: bool) -> Any:
    def proof(counters: Counters, plan: Plan) -> str | None:
        if not counters.matmul_flops:
            raise Unsupported("the model has no matrix products to compute in 16 bits")
        if all(kind.startswith(LEFT) for kind in counters.matmul_flops):
            raise Unsupported(
                f"autocast leaves products in {', '.join(counters.matmul_flops)} as they are: make "
                "the model one of float32"
            )
        if (share := _share(_outside_attention(counters), dtype)) < LEAST_SHARE:
            return f"only {share:.0%} of the matrix products had {dtype} inputs"
        if scaled == (counters.loss_scale > SCALED):
            return None
        told = "not scaled" if scaled else "scaled"
        return f"the loss went backward at scale {counters.loss_scale:g}: it was {told}"

    return proof


def _needs_tf32_cores(case: Case, machine: Mapping[str, Any]) -> str | None:
    if device_type(machine) == "cpu":
        return "tf32 needs an NVIDIA GPU: a CPU has no TF32 units"
    old = [gpu["name"] for gpu in machine["gpus"] if float(gpu["capability"]) < 8.0]
    return f"tf32 needs compute capability 8.0 or later, which {old[0]} lacks" if old else None


def _needs_bf16(case: Case, machine: Mapping[str, Any]) -> str | None:
    old = [gpu["name"] for gpu in machine["gpus"] if not gpu["bf16"]]
    return f"bf16 needs a GPU with bfloat16 units, which {old[0]} lacks" if old else None


PRECISION = Axis(
    name="precision",
    baseline="fp32",
    inside=True,
    examples=("fp32", "tf32", "fp16", "fp16-unscaled", "bf16"),
    techniques=(
        Technique(
            name="fp32",
            about="32-bit floats throughout, TF32 off",
            model=_float32_products(tf32=False),
            proof=_proof_float32,
        ),
        Technique(
            name="tf32",
            about="32-bit floats, products in TensorFloat-32 (10-bit mantissa)",
            model=_float32_products(tf32=True),
            proof=_proof_tf32,
            unsupported=_needs_tf32_cores,
            tolerance=lambda workload: 1e-2,
        ),
        Technique(
            name="fp16",
            about="float16 autocast with a gradient scaler",
            plan=lambda plan: replace(plan, autocast=torch.float16, scale_loss=True),
            model=_float32_products(tf32=False),
            proof=_proof_16_bit("float16", scaled=True),
            tolerance=lambda workload: 2e-2,
        ),
        Technique(
            name="fp16-unscaled",
            about="float16 autocast alone: small gradients vanish",
            plan=lambda plan: replace(plan, autocast=torch.float16),
            model=_float32_products(tf32=False),
            proof=_proof_16_bit("float16", scaled=False),
            leaves_tensors=True,
            # What it loses depends on the size of the gradients: to be looked at, not judged.
            tolerance=lambda workload: None,
        ),
        Technique(
            name="bf16",
            about="bfloat16 autocast, no scaling needed",
            plan=lambda plan: replace(plan, autocast=torch.bfloat16),
            model=_float32_products(tf32=False),
            proof=_proof_16_bit("bfloat16", scaled=False),
            unsupported=_needs_bf16,
            tolerance=lambda workload: 5e-2,
        ),
    ),
)

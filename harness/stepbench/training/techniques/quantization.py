"""Linear layers in few bits, through torchao: computed in 8-bit floats, or trained for int8.

An axis of its own and not precision's: it replaces layers, and what they are surrounded by is still
computed in the type that precision says (`bf16+fp8` is how fp8 is meant to be used).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stepbench.records.case import Case
from stepbench.records.measurement import Counters
from stepbench.training.emulation import require_bearable
from stepbench.training.layers import linear_layers
from stepbench.training.types import Axis, Plan, Site, Technique, Unsupported

# The matrix units' tiles: torch's 8-bit products refuse other sizes.
TILE = 16


def _chosen(model: nn.Module, site: Site, *, tile: int = 1) -> set[str]:
    """Names of the layers whose sizes are multiples of `tile`."""
    layers = linear_layers(model, site.workload)
    fitting = {
        name
        for name, one in layers.items()
        if one.in_features % tile == one.out_features % tile == 0
    }
    if not fitting:
        sizes = f" whose sizes are multiples of {tile}" if layers and tile > 1 else ""
        raise Unsupported(f"{site.workload.name} has no linear layers{sizes} to quantize")
    return fitting


def _float8(model: nn.Module, site: Site) -> nn.Module:
    chosen = _chosen(model, site, tile=TILE)
    if site.device.type == "cpu":
        _require_bearable_products()
    from torchao.float8 import convert_to_float8_training

    convert_to_float8_training(model, module_filter_fn=lambda module, name: name in chosen)
    return model


def _require_bearable_products() -> None:
    """The product that torchao's layers call, beside the same in float32."""
    plain = torch.ones(128, 128)
    eight, one = plain.to(torch.float8_e4m3fn), torch.ones(())

    def emulated() -> object:
        return torch._scaled_mm(eight, eight.t(), one, one, out_dtype=torch.bfloat16)

    require_bearable("an emulated fp8 product", emulated, lambda: plain @ plain)


def _fake_int8(model: nn.Module, site: Site) -> nn.Module:
    chosen = _chosen(model, site)
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.qat import QATConfig

    base = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int8, weight_granularity=PerAxis(0)
    )
    quantize_(model, QATConfig(base, step="prepare"), filter_fn=lambda module, name: name in chosen)
    return model


def _proof_float8(counters: Counters, plan: Plan) -> str | None:
    if any(kind.startswith("float8") for kind in counters.matmul_flops):
        return None
    return f"matrix products had {' and '.join(counters.matmul_flops)} inputs, none 8-bit floats"


def _proof_unquantized(counters: Counters, plan: Plan) -> str | None:
    return None if _proof_float8(counters, plan) else "matrix products had 8-bit inputs"


def _proof_rounded(counters: Counters, plan: Plan) -> str | None:
    return None if "aten.round" in counters.operators else "nothing was rounded in a step"


def _needs_float8_units(case: Case, machine: Mapping[str, Any]) -> str | None:
    old = [gpu["name"] for gpu in machine["gpus"] if float(gpu["capability"]) < 8.9]
    return f"fp8 needs compute capability 8.9 or later, which {old[0]} lacks" if old else None


QUANTIZATION = Axis(
    name="quantization",
    baseline="unquantized",
    inside=True,
    examples=("unquantized", "fp8", "qat-int8"),
    techniques=(
        Technique(
            name="unquantized",
            about="linear layers in the type that precision says",
            proof=_proof_unquantized,
        ),
        Technique(
            name="fp8",
            about="linear layers in 8-bit floats (torchao); on a CPU the mathematics only",
            imports=("torchao.float8",),
            model=_float8,
            proof=_proof_float8,
            unsupported=_needs_float8_units,
            # 3 bits of mantissa err by up to 6%, of which norms average most out.
            tolerance=lambda workload: 1e-1,
        ),
        Technique(
            name="qat-int8",
            about="linear layers rounded to int8 and back, to be quantized later (torchao)",
            imports=("torchao.quantization.qat",),
            model=_fake_int8,
            proof=_proof_rounded,
            tolerance=lambda workload: None,
        ),
    ),
)

"""Which kernel computes attention, for models that call torch's `scaled_dot_product_attention`.

Chosen around a whole micro-batch: backward recomputes under checkpointing, and has to choose alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Counters
from stepbench.training.types import Axis, Batch, Loop, Plan, Site, Technique, Unsupported, as_it_is

# Sums in another order.
TOLERANCE = 1e-3
# How torch begins when a model's attention fits no kernel that was allowed.
NO_KERNEL = ("No viable backend", "No available kernel")
# How operators are named that attention ends in: the fused kernels, and the softmax of the others.
OPERATORS = ("_scaled_dot_product_", "_safe_softmax")


def _chosen(name: str, kernel: SDPBackend) -> Callable[[Loop, Site], Loop]:
    def edit(loop: Loop, site: Site) -> Loop:
        def forward(batch: Batch) -> Tensor:
            try:
                return loop.forward(batch)
            except RuntimeError as error:
                if str(error).startswith(NO_KERNEL):
                    raise Unsupported(
                        f"{name}: torch has no such kernel for {site.workload.name}'s attention "
                        f"on {site.device.type} (its type, mask, dropout or head size)"
                    ) from error
                raise

        return replace(
            loop, forward=forward, around=(*loop.around, lambda last: sdpa_kernel(kernel))
        )

    return edit


def _proof(operator: str) -> Callable[[Counters, Plan], str | None]:
    def proof(counters: Counters, plan: Plan) -> str | None:
        ran = [name for name in counters.operators if any(one in name for one in OPERATORS)]
        if not ran:
            raise Unsupported("the model never calls torch's scaled_dot_product_attention")
        others = [name for name in ran if operator not in name]
        return f"{others[0]} ran" if others else None

    return proof


def _only_on_gpus(name: str) -> Callable[[Case, Mapping[str, Any]], str | None]:
    def unsupported(case: Case, machine: Mapping[str, Any]) -> str | None:
        if device_type(machine) == "cpu":
            return f"{name} needs an NVIDIA GPU: torch has no such kernel for a CPU"
        return None

    return unsupported


def _on_later_gpus(name: str, *, on_cpus: bool) -> Callable[[Case, Mapping[str, Any]], str | None]:
    def unsupported(case: Case, machine: Mapping[str, Any]) -> str | None:
        if device_type(machine) == "cpu":
            return None if on_cpus else _only_on_gpus(name)(case, machine)
        old = [gpu["name"] for gpu in machine["gpus"] if float(gpu["capability"]) < 8.0]
        if old:
            return f"{name} needs compute capability 8.0 or later, which {old[0]} lacks"
        return None

    return unsupported


def _kernel(
    name: str,
    about: str,
    kernel: SDPBackend,
    operator: str,
    unsupported: Callable[[Case, Mapping[str, Any]], str | None],
) -> Technique:
    return Technique(
        name=name,
        about=about,
        loop=_chosen(name, kernel),
        proof=_proof(operator),
        unsupported=unsupported,
        tolerance=lambda workload: TOLERANCE,
    )


ATTENTION = Axis(
    name="attention",
    baseline="sdpa-auto",
    inside=True,
    examples=("sdpa-auto", "sdpa-math", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn"),
    techniques=(
        Technique(
            name="sdpa-auto",
            about="the kernel that torch chooses by itself",
            proof=as_it_is,
        ),
        _kernel(
            "sdpa-math",
            "attention as products and a softmax, every score kept",
            SDPBackend.MATH,
            "_safe_softmax",
            lambda case, machine: None,
        ),
        _kernel(
            "sdpa-flash",
            "fused attention in tiles, no score kept (FlashAttention-2)",
            SDPBackend.FLASH_ATTENTION,
            "_scaled_dot_product_flash_attention",
            _on_later_gpus("sdpa-flash", on_cpus=True),
        ),
        _kernel(
            "sdpa-efficient",
            "fused attention in tiles, 32 bits too (xFormers' memory-efficient kernel)",
            SDPBackend.EFFICIENT_ATTENTION,
            "_scaled_dot_product_efficient_attention",
            _only_on_gpus("sdpa-efficient"),
        ),
        _kernel(
            "sdpa-cudnn",
            "fused attention by cuDNN",
            SDPBackend.CUDNN_ATTENTION,
            "_scaled_dot_product_cudnn_attention",
            _on_later_gpus("sdpa-cudnn", on_cpus=False),
        ),
    ),
)

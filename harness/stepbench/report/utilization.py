"""A step's operations over what the hardware could do in it, by both conventions.

Model FLOP utilization (MFU) counts the operations that the result needs, hardware FLOP utilization
(HFU) all that ran: recomputed ones too (Chowdhery et al. 2022, arXiv:2204.02311). Both are counted
by torch's convention: 2 a multiply-add, causal attention in full. Peaks are the data sheets' for
dense matrices, by the exact name that the driver gives: another form factor of the same chip has
another peak, and what is not in the list has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TERA = 1e12
# Dense FLOP/s by the type of products: NVIDIA's data sheets of V100, A100, H100 and H200.
_AMPERE = {"fp32": 19.5, "tf32": 156.0, "fp16": 312.0, "bf16": 312.0}
_HOPPER = {"fp32": 67.0, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4}
PEAKS_TFLOPS: dict[str, dict[str, float]] = {
    "Tesla V100-SXM2-16GB": {"fp32": 15.7, "fp16": 125.0},
    "Tesla V100-SXM2-32GB": {"fp32": 15.7, "fp16": 125.0},
    "NVIDIA A100-SXM4-40GB": _AMPERE,
    "NVIDIA A100-SXM4-80GB": _AMPERE,
    "NVIDIA H100 80GB HBM3": _HOPPER,
    "NVIDIA H200": _HOPPER,
}


def peak_flops_per_s(machine: Mapping[str, Any], precision: str) -> float | None:
    """The peak of one of the machine's GPUs for a precision technique's products, or None."""
    names = {gpu["name"] for gpu in machine["gpus"]}
    if len(names) != 1:
        return None
    peak = PEAKS_TFLOPS.get(names.pop(), {}).get(precision)
    return None if peak is None else peak * TERA


def utilization(
    step_flops: float, step_s: float, ranks: int, peak_flops_per_s: float | None
) -> float | None:
    """The share of all ranks' peak that a step's operations used; None without a peak."""
    if peak_flops_per_s is None:
        return None
    return step_flops / step_s / (ranks * peak_flops_per_s)


def legend(machine: Mapping[str, Any]) -> str | None:
    """The conventions and the peaks that they were taken against, or None where there is none."""
    name = next((gpu["name"] for gpu in machine["gpus"]), "")
    if name not in PEAKS_TFLOPS:
        return None
    peaks = ", ".join(f"{kind} {peak:g}" for kind, peak in PEAKS_TFLOPS[name].items())
    return (
        "MFU: model FLOPs (the baseline's: 2 a multiply-add, causal attention in full, nothing "
        "computed again, not by attention's backward pass either) / step time / dense peak; HFU: "
        f"all FLOPs that ran instead. Peaks of the {name} by its data sheet, in TFLOP/s: {peaks}."
    )

"""A step's operations over what the hardware could do in it, by both conventions.

Model FLOP utilization (MFU) counts the operations that the result needs, hardware FLOP utilization
(HFU) all that ran: recomputed ones too (Chowdhery et al. 2022, arXiv:2204.02311). Both are counted
by torch's convention: 2 a multiply-add, causal attention in full. Peaks are the data sheets' for
dense matrices, by the exact name that the driver gives: another form factor of the same chip has
another peak, and what is not in the list has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stepbench.metrics.metric import Metric
from stepbench.metrics.result import Result
from stepbench.metrics.summary import of_result
from stepbench.metrics.time import STEP_S

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


def _share_of_peak(flops: Callable[[Result], float]) -> Callable[[Result], float | None]:
    """Reads the share of all ranks' peak that a step's operations used.

    None where it cannot be told: without a peak, of 8-bit layers, which have another peak than the
    precision around them, and where fused RNNs have products inside that are not counted.
    """

    def share(result: Result) -> float | None:
        chosen = result.case.combination.techniques
        peak = peak_flops_per_s(result.machine, chosen.get("precision", "fp32"))
        if peak is None or not result.rounds or "quantization" in chosen:
            return None
        if any("rnn" in name for name in result.rounds[0].case.counters.operators):
            return None
        step_s: float = STEP_S.of(result)
        return flops(result) / step_s / (result.case.ranks * peak)

    return share


def _model_flops(result: Result) -> float:
    """Operations of one step that its result needs, on all ranks.

    The baseline's, of as many batches: what is computed again does not count, nor do the scores
    that attention's kernels compute again in their backward pass. Fewer where the case itself ran
    fewer, as with frozen weights.
    """
    return min(
        min(
            one.baseline.counters.model_flops * result.case.batch_factor,
            one.case.counters.model_flops * result.case.ranks,
        )
        for one in result.judged
    )


def _hardware_flops(result: Result) -> float:
    """Operations of one step that were run, again or not, on all ranks."""
    return min(one.counters.flops for one in result.processes) * result.case.ranks


MFU = Metric[Result](
    key="utilization",
    unit="share",
    better="higher",
    about="Model FLOPs of a step over what the hardware could do in it.",
    read=_share_of_peak(_model_flops),
    summary=of_result,
)
HFU = Metric[Result](
    key="hardware_utilization",
    unit="share",
    better="higher",
    about="All FLOPs that a step ran over what the hardware could do in it.",
    read=_share_of_peak(_hardware_flops),
    summary=of_result,
)


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

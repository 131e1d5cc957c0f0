"""The table of techniques that cannot be trained together, each pair with the reason.

This is the one place that names techniques and axes of other files. What a single technique needs
of a machine stands in its own entry (`Technique.unsupported`), and what it needs of a model is
found when it is built (`Unsupported`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Incompatible:
    """Two groups of techniques of which no two go together.

    Attributes:
        these: names of techniques, or `any AXIS` for every technique of an axis but its baseline.
        those: the same, of other axes.
        why: completes "A with B: …"; it ends in what to choose instead.
    """

    these: tuple[str, ...]
    those: tuple[str, ...]
    why: str


SHARDED_PARAMETERS = ("zero2", "fsdp2", "fsdp2-offload")
NO_WORKERS = "it is about worker processes; choose workersN with it"

INCOMPATIBLE = (
    Incompatible(
        ("sync-batchnorm",),
        ("single", "dataparallel"),
        "it is about ranks that are processes; choose ddp, zero1, … with it",
    ),
    Incompatible(
        ("dataparallel",),
        ("any compile",),
        "a compiled model belongs to one device, and dataparallel copies it; choose ddp",
    ),
    Incompatible(
        ("dataparallel",),
        ("any checkpointing",),
        "checkpointing holds on to the blocks themselves, and it is copies of them that run; "
        "choose ddp",
    ),
    Incompatible(
        ("dataparallel",),
        ("offload-activations",),
        "torch offloads what one thread saves, and the replicas run in threads of their own; "
        "choose ddp",
    ),
    Incompatible(
        ("adafactor",),
        SHARDED_PARAMETERS,
        "torch's takes norms of rows, which shards do not hold whole; choose ddp or zero1, or "
        "adam8bit",
    ),
    Incompatible(
        ("adam8bit-bitsandbytes",),
        SHARDED_PARAMETERS,
        "its kernels take whole tensors, not shards; choose ddp or zero1, or adam8bit",
    ),
    Incompatible(
        ("offload-optimizer",),
        ("fp16",),
        "torchao copies gradients to the host as backward makes them, which are still scaled; "
        "choose bf16",
    ),
    Incompatible(
        ("offload-optimizer",),
        ("any clipping",),
        "torchao copies gradients to the host before they are clipped; leave clipping out",
    ),
    Incompatible(
        ("offload-optimizer",),
        ("any parallel",),
        "torchao's is for one GPU; choose fsdp2-offload for several",
    ),
    Incompatible(
        ("offload-optimizer",),
        ("adam8bit", "adam8bit-compiled", "adam8bit-bitsandbytes"),
        "torchao gives all tensors of fewer than 4096 elements an optimizer of their own, which "
        "has nothing to keep in 8 bits; choose adamw-fused",
    ),
    Incompatible(
        ("ddp-static",),
        ("any accumulation",),
        "torch's static graph knows no no_sync(); choose ddp",
    ),
    Incompatible(
        SHARDED_PARAMETERS,
        ("ckpt-sqrt",),
        "it runs several blocks as one, which sharding by block cannot gather; choose ckptK",
    ),
    # `_MultiDeviceReplicator` in torch/amp/grad_scaler.py copies to pinned memory without waiting.
    Incompatible(
        ("fsdp2-offload",),
        ("fp16",),
        "torch's gradient scaler does not wait for the copy of its scale to the host, where "
        "gradients are unscaled; choose bf16",
    ),
    Incompatible(("any prefetch",), ("workers0",), NO_WORKERS),
    Incompatible(("any persistence",), ("workers0",), NO_WORKERS),
)

INCOMPATIBLE_ON_GPUS = (
    Incompatible(
        ("sdpa-flash", "sdpa-cudnn"),
        ("fp32", "tf32"),
        "the kernel computes in 16 bits only on a GPU; choose bf16 with it",
    ),
    # https://github.com/pytorch/pytorch/issues/169545
    Incompatible(
        ("compile-overhead", "compile-max"),
        ("any accumulation",),
        "CUDA graphs overwrite the gradients that the micro-batch before has left; choose compile",
    ),
)


def conflict(
    table: Sequence[Incompatible], techniques: Mapping[str, str], baselines: Mapping[str, str]
) -> str | None:
    """Why two of a case's techniques cannot be trained together by `table`, or None.

    `techniques` are those that were chosen and `baselines` those of every axis, as `{axis: name}`.
    """
    chosen = {f"any {axis}": name for axis, name in techniques.items()}
    named = {name: name for name in {**baselines, **techniques}.values()} | chosen
    for entry in table:
        this = next((named[one] for one in entry.these if one in named), None)
        that = next((named[one] for one in entry.those if one in named), None)
        if this and that:
            return f"{this} with {that}: {entry.why}"
    return None

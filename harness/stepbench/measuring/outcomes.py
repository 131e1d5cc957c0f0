"""How an exception that ended a measurement is told: out of memory or failed, in which phase."""

from __future__ import annotations

import traceback

import torch

from stepbench.measuring.process import brief_traceback, one_line
from stepbench.records.outcome import Outcome, OutcomeKind, Phase

# What torch raises as a plain RuntimeError: its CPU allocator, the driver, cuBLAS and cuDNN. Its
# compiler wraps what a kernel raised, and Triton has words of its own.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",  # cuDNN 9's, of host and device
    "Cuda failure 2 'out of memory'",  # NCCL's
)

# What torch says in its own words, by how the case ends and what a person can do.
KNOWN: dict[str, tuple[OutcomeKind, str]] = {
    "finished reduction in the prior iteration": (
        "failed",
        "some parameters got no gradient in a step, which ddp waits for: choose ddp-unused",
    ),
    "'DistributedDataParallel' object has no attribute": (
        "failed",
        "call= asks the model for a method that DDP's wrapper lacks: call the model itself, whose "
        "forward may return the loss",
    ),
    # gloo's, which ends the process that was sent more than it asked for.
    "op.preamble.length <= op.nbytes": (
        "failed",
        "the ranks exchanged unlike tensors, as where a branch or an expert gives a parameter a "
        "gradient on one rank only: choose ddp-unused",
    ),
    **dict.fromkeys(
        (
            "A different number of tensors was saved during the original forward and recomputation",
            "Recomputed values for the following tensors have different metadata",
        ),
        (
            "failed",
            "a recomputed block took another path than in forward, as where it fills a cache: a "
            "Hugging Face model takes use_cache=False",
        ),
    ),
    "grad can be implicitly created only for scalar outputs": (
        "failed",
        "the loss is no scalar: loss= must return the mean over all terms; so must call= where "
        "loss=None",
    ),
    "aot_autograd does not currently support double backward": (
        "unsupported",
        "torch.compile takes no gradient of a gradient, as a penalty on gradients is: leave it out",
    ),
    "`fused=True` requires all the params to be floating point": (
        "unsupported",
        "torch's fused optimizers take no complex parameters: choose adamw-foreach",
    ),
    "Adafactor does not support complex parameters": (
        "unsupported",
        "torch's Adafactor takes no complex parameters: choose adamw-foreach",
    ),
    "_amp_foreach_non_finite_check_and_unscale_cpu\" not implemented for 'Complex": (
        "unsupported",
        "torch's gradient scaler takes no complex gradients: choose bf16",
    ),
    "only allowed to backward once on any region computed under selective": (
        "unsupported",
        "selective checkpointing goes backward once, and the model has gone before, for a gradient "
        "inside its forward: choose ckpt1",
    ),
    "only supports using the same dense type for all parameters": (
        "unsupported",
        "ZeroRedundancyOptimizer takes parameters of one type only: choose ddp",
    ),
    "FSDP expects uniform original parameter dtype": (
        "unsupported",
        "FSDP2 takes no parameters of several types in one block: choose ddp",
    ),
    **dict.fromkeys(
        (
            "does not support sparse gradients",
            "Sparse gradient is not supported",  # torchao's
            "from the 'SparseCPU' backend",
            "from the 'SparseCUDA' backend",
        ),
        ("unsupported", "it takes no sparse gradients: make embeddings with sparse=False"),
    ),
}


def outcome_of(error: Exception, phase: Phase) -> Outcome:
    """`oom` or `failed`, with the part of the step that raised, or else the phase given."""
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(one in str(error) for one in OUT_OF_MEMORY)
    )
    kind, reason = in_known_words(str(error)) or (
        "oom" if out_of_memory else "failed",
        one_line(error),
    )
    return Outcome(
        kind=kind,
        reason=reason,
        phase=_phase_of(error) or phase,
        traceback=brief_traceback(error),
    )


def in_known_words(text: str) -> tuple[OutcomeKind, str] | None:
    """How a case ends of which torch says this, and what a person can do; None if unknown."""
    return next((told for words, told in KNOWN.items() if words in text), None)


def _phase_of(error: Exception) -> Phase | None:
    """The part of the step that raised: the first of the loop's functions below `train_step`."""
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if "train_step" not in frames:
        return None
    for name in frames[frames.index("train_step") :]:
        match name:
            case "forward" | "backward" | "update":
                return name
            case "micro_batches":
                return "data"
    return None

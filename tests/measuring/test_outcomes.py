"""Whatever says that memory ran out is `oom`, by whichever library's words."""

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from stepbench.measuring.outcomes import outcome_of


def wrapped(error):
    """As torch.compile raises what happened under it."""

    def inductor():
        raise error

    return BackendCompilerFailed(inductor, error, None)


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    wrapped(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'"),
]
NOT = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    wrapped(RuntimeError("CUDA error: invalid device function")),
    ValueError("CUDA out of memory"),
]


@pytest.mark.parametrize(
    ("error", "kind"), [(one, "oom") for one in OUT] + [(one, "failed") for one in NOT]
)
def test_out_of_memory_by_its_words(error, kind):
    outcome = outcome_of(error, "warm-up")
    assert (outcome.kind, outcome.phase) == (kind, "warm-up")
    assert "\n" not in outcome.reason

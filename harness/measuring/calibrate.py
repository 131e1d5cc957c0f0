"""The machine's own speed: a matrix product, a copy in memory, a copy to the device.

Without it a driver upgrade or a throttled processor looks like a bad commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from harness.core import Calibration
from harness.measuring.probes.timing import synchronize
from harness.store import now

REPEATS = 5


def calibrate(device_type: str) -> dict[str, Any]:
    """Measure the device in this process, which must be fresh; a `Calibration` as JSON.

    The best of 5 each: products of 512 (CPU, float32) or 8192 (CUDA, bfloat16) rows, copies of
    64 MiB or 1 GiB read and written, copies of 256 MiB from pinned and from pageable memory.
    """
    device = torch.device(device_type)
    cuda = device.type == "cuda"
    if not cuda:
        torch.set_num_threads(1)
    rows, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    left = torch.randn(rows, rows, device=device, dtype=dtype)
    source = torch.empty(2**30 if cuda else 2**26, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return Calibration(
        measured_at=now(),
        matmul_dtype=str(dtype).removeprefix("torch."),
        matmul_flops_per_s=2 * rows**3 / _best_s(lambda: left @ left, device),
        memory_bytes_per_s=2 * source.numel() / _best_s(lambda: target.copy_(source), device),
        host_to_device_bytes_per_s=_host_to_device(device, True) if cuda else None,
        pageable_to_device_bytes_per_s=_host_to_device(device, False) if cuda else None,
    ).to_json()


def _host_to_device(device: torch.device, pinned: bool) -> float:
    source = torch.empty(2**28, dtype=torch.uint8, pin_memory=pinned).fill_(1)
    target = torch.empty(2**28, dtype=torch.uint8, device=device)
    return source.numel() / _best_s(lambda: target.copy_(source, non_blocking=True), device)


def _best_s(run: Callable[[], Any], device: torch.device) -> float:
    run()
    best_s = float("inf")
    for _ in range(REPEATS):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - began)
    return best_s

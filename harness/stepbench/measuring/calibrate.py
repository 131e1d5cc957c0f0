"""The machine's own speed: a matrix product, a copy in memory, a copy to the device.

Without it a driver upgrade or a throttled processor looks like a bad commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from stepbench.measuring.probes.timing import synchronize
from stepbench.records.run import Calibration
from stepbench.store import now

REPEATS = 5
# A GPU's clocks rise while it is kept busy.
WARM_UP_S = 0.3


def calibrate(device_type: str, threads: int) -> dict[str, Any]:
    """Measure the device in this process, which must be fresh; a `Calibration` as JSON.

    A CPU is measured on `threads` threads.

    The best of 5 each: products of 512 (CPU, float32) or 8192 (CUDA, bfloat16, many in a row)
    rows, copies of 64 MiB or 1 GiB read and written, copies of 256 MiB from pinned and from
    pageable memory.
    """
    device = torch.device(device_type)
    cuda = device.type == "cuda"
    if not cuda:
        torch.set_num_threads(threads)
    rows, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    left = torch.randn(rows, rows, device=device, dtype=dtype)
    source = torch.empty(2**30 if cuda else 2**26, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return Calibration(
        measured_at=now(),
        matmul_dtype=str(dtype).removeprefix("torch."),
        matmul_flops_per_s=2 * rows**3 / run_s(lambda: left @ left, device),
        memory_bytes_per_s=2 * source.numel() / _best_s(lambda: target.copy_(source), device),
        host_to_device_bytes_per_s=host_to_device(device, True) if cuda else None,
        pageable_to_device_bytes_per_s=host_to_device(device, False) if cuda else None,
    ).to_json()


def run_s(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one run, the best of 5; on CUDA of many by the device's clock, once it is warm."""
    if device.type == "cpu":
        return _best_s(run, device)
    many = _warmed_up(run, device)
    best_s = float("inf")
    for _ in range(REPEATS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(many):
            run()
        ended.record()
        synchronize(device)
        best_s = min(best_s, began.elapsed_time(ended) / 1e3 / many)
    return best_s


def _warmed_up(run: Callable[[], Any], device: torch.device) -> int:
    """Keep the device busy for WARM_UP_S; of all runs in it, the share of one repetition."""
    run()
    synchronize(device)  # the libraries' own start is no work
    until_s = time.perf_counter() + WARM_UP_S
    ran = 0
    while time.perf_counter() < until_s:
        run()
        synchronize(device)
        ran += 1
    return max(1, ran // REPEATS)


def host_to_device(device: torch.device, pinned: bool) -> float:
    """Bytes/s of a non-blocking copy of 256 MiB from pinned or pageable memory, the best of 5."""
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

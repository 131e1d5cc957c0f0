"""What is measured on CUDA, against a stand-in for torch.cuda and the driver."""

import os
from types import SimpleNamespace

import pynvml
import pytest
import torch

from stepbench.measuring import calibrate
from stepbench.measuring.probes import memory

GPU = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch):
    """A stand-in for torch.cuda and the driver: what was called, and what they tell."""
    seen = SimpleNamespace(
        calls=[],
        segments=[],
        processes=[
            SimpleNamespace(pid=1, usedGpuMemory=5),
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=789),
        ],
    )

    def stand_in(name, value):
        monkeypatch.setattr(torch.cuda, name, lambda *_: (seen.calls.append(name), value)[1])

    stand_in("synchronize", None)
    stand_in("reset_peak_memory_stats", None)
    stand_in("max_memory_allocated", 123)
    stand_in("max_memory_reserved", 456)
    stand_in("memory_snapshot", seen.segments)
    stand_in("get_device_properties", SimpleNamespace(uuid="0123"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: {"GPU-0123": 7}[uuid])
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: seen.processes
    )
    return seen


def segment(pool, total_size, allocated_size, gpu=0):
    """A part of the caching allocator's memory, as torch.cuda.memory_snapshot() tells of it."""
    return {
        "device": gpu,
        "segment_pool_id": pool,
        "total_size": total_size,
        "allocated_size": allocated_size,
    }


def test_memory_is_read_from_the_caching_allocator(cuda):
    cuda.segments.append(segment((0, 0), 500, 23))  # what it keeps for later is held by nobody
    result, peak = memory.memory_probe(GPU).watch(lambda: cuda.calls.append("run") or 42)
    assert result == 42
    assert (peak.allocated_bytes, peak.reserved_bytes, peak.process_bytes) == (123, 456, 789)
    assert [one for one in cuda.calls if one != "memory_snapshot"][:4] == [
        "synchronize",
        "reset_peak_memory_stats",
        "run",
        "synchronize",
    ]


def test_the_pools_of_cuda_graphs_count_in_full(cuda):
    probe = memory.memory_probe(GPU)

    def record():
        cuda.segments.append(segment((0, 1), 100, 20))
        cuda.segments.append(segment((0, 1), 10, 0, gpu=1))

    _, recorded = probe.watch(record)  # by the books
    _, replayed = probe.watch(lambda: None)
    assert (recorded.allocated_bytes, replayed.allocated_bytes) == (123, 123 + 80)


def test_a_driver_that_tells_nothing_is_none(monkeypatch):
    def refuse():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert memory._driver_bytes(GPU) is None


@pytest.mark.parametrize("told_bytes", [0, None])
def test_a_driver_that_knows_us_but_not_our_memory_is_none(cuda, told_bytes):
    cuda.processes[-1].usedGpuMemory = told_bytes
    assert memory._driver_bytes(GPU) is None


class FakeGpu:
    """A GPU whose first product takes 1 s, and then 4 ms until it has been busy for 0.2 s, then 2.

    It does its work while the host waits for it, and each wait costs the host 1 ms more.
    """

    def __init__(self):
        self.host_s = self.done_s = self.busy_s = 0.0
        self.products = self.waits = 0

    def __matmul__(self, other):
        took_s = 1.0 if not self.products else 0.004 if self.busy_s < 1.2 else 0.002
        self.products += 1
        self.busy_s += took_s
        self.done_s = max(self.done_s, self.host_s) + took_s

    def wait(self, device):
        self.waits += 1
        self.host_s = max(self.host_s, self.done_s) + 0.001

    def event(self, *, enable_timing):
        one = SimpleNamespace(at_s=None)
        one.record = lambda: setattr(one, "at_s", max(self.done_s, self.host_s))
        one.elapsed_time = lambda later: (later.at_s - one.at_s) * 1e3
        return one


def test_a_gpu_s_products_are_timed_by_its_clock_when_it_is_warm(monkeypatch):
    gpu = FakeGpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.wait)
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: gpu.host_s)
    assert calibrate.run_s(lambda: gpu @ gpu, GPU) == pytest.approx(0.002)
    warm = gpu.waits - calibrate.REPEATS
    assert gpu.products - warm >= 5 * 10  # many between two events


def test_a_cpu_s_products_are_timed_one_by_one(monkeypatch):
    cpu = FakeGpu()
    monkeypatch.setattr(calibrate, "synchronize", cpu.wait)
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: cpu.host_s)
    calibrate.run_s(lambda: cpu @ cpu, torch.device("cpu"))
    assert cpu.products == 1 + calibrate.REPEATS

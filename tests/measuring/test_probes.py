"""The probes alone, and their CUDA side against a stand-in for the device."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch._C._autograd import DeviceType

from harness.measuring.launch import in_child
from harness.measuring.probes import communication, memory, timing
from harness.measuring.probes.surroundings import HostLoad


def test_marks_are_made_before_the_first_step_and_the_device_is_waited_for_twice(monkeypatch):
    happened = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing
            happened.append("made")

        def record(self):
            happened.append("mark")

        def elapsed_time(self, later):
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append("wait"))
    window = timing.time_steps(lambda: happened.append("step"), 2, torch.device("cuda"))
    assert happened == ["made"] * 3 + ["wait", "mark", "step", "mark", "step", "mark", "wait"]
    assert window.step_s == (0.0025, 0.0025)


def test_a_clock_that_disagrees_with_the_wall_is_an_objection():
    window = timing.Window(step_s=(0.1, 0.1), cpu_s=(0.1, 0.1), window_s=0.21)
    assert window.objection() == "the steps sum to 0.2000 s but the window took 0.2100 s"
    assert timing.Window(step_s=(0.1, 0.1), cpu_s=(0, 0), window_s=0.201).objection() is None


def event(name, begin, end, *, device=DeviceType.CPU, children=()):
    times = SimpleNamespace(start=begin * 1e6, end=end * 1e6)
    return SimpleNamespace(
        name=name, time_range=times, device_type=device, cpu_children=list(children)
    )


@pytest.mark.parametrize(
    ("when", "length"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(1, 3), (2, 4)], 3),
        ([(5, 6), (1, 9), (2, 3)], 8),
        ([(1, 2), (4, 5)], 2),
    ],
)
def test_the_length_of_a_union(when, length):
    assert communication.total(when) == length


def test_communication_is_exposed_where_nothing_was_computed():
    inner = event("aten::mm", 2, 4)
    events = [
        event("gloo:all_reduce", 1, 6),
        event("gloo:all_reduce", 5, 7),
        event("aten::matmul", 0, 5, children=[inner]),  # waits but for its child
        inner,
        event("aten::add", 6.5, 9),
        event("c10d::allreduce_", 0, 1),
    ]
    running, computing = communication.intervals(events, cuda=False)
    assert communication.total(running) == 6  # from 1 to 7
    exposed = communication.total([*running, *computing]) - communication.total(computing)
    assert exposed == 3.5  # but for 2 to 4 and 6.5 to 7


def test_communication_on_a_device_is_read_from_its_kernels():
    on_device = {"device": DeviceType.CUDA}
    events = [
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgs)", 1, 5, **on_device),
        event("sm90_xmma_gemm_f32f32", 2, 3, **on_device),
        event("aten::mm", 0, 9),
        event("nccl:all_reduce", 0, 9),
    ]
    running, computing = communication.intervals(events, cuda=True)
    assert (running, computing) == ([(1, 5)], [(2, 3)])


def test_cpu_peak_is_the_bytes_that_were_held():
    def work():
        probe = memory.CpuMemory()
        kept = []

        def run():
            kept.append(torch.zeros(2**20))  # 4 MiB stay
            torch.zeros(3 * 2**20)  # 12 MiB more for a moment

        _, first = probe.watch(run)
        _, second = probe.watch(lambda: torch.zeros(2**18))
        return [probe.method, first.allocated_bytes, second.allocated_bytes]

    method, first, second = in_child(work, deadline_s=60).answer
    assert method == "CPU allocator total"
    assert first == pytest.approx(16 * 2**20, rel=1e-3)
    assert second == pytest.approx(5 * 2**20, rel=1e-3)


def test_a_torch_without_the_switch_sums_allocations_and_says_so(monkeypatch):
    monkeypatch.setattr(memory, "_report_cpu_totals", lambda: False)

    def work():
        probe = memory.CpuMemory()
        kept = []
        _, first = probe.watch(lambda: kept.append(torch.zeros(2**20)))
        _, second = probe.watch(lambda: torch.zeros(2**18))
        return [probe.method, first.allocated_bytes, second.allocated_bytes]

    method, first, second = in_child(work, deadline_s=60).answer
    assert method == "sum of CPU allocations"
    assert (first, second) == (4 * 2**20, 5 * 2**20)


def test_tied_weights_count_once():
    def work():
        weight = torch.zeros(10, 10)
        return memory.distinct_bytes([weight, weight.t(), weight[2:], torch.zeros(3)])

    assert in_child(work, deadline_s=60).answer == 400 + 12


def test_cuda_memory_reads_the_caching_allocator(monkeypatch):
    calls = []
    for name, value in {
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 123,
        "max_memory_reserved": 456,
    }.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda device, name=name, value=value: (calls.append(name), value)[1]
        )
    properties = SimpleNamespace(uuid="0123")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    import pynvml

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: {"GPU-0123": 7}[uuid])
    others = [SimpleNamespace(pid=1, usedGpuMemory=5)]
    ours = SimpleNamespace(pid=os.getpid(), usedGpuMemory=789)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: [*others, ours]
    )
    probe = memory.memory_probe(torch.device("cuda"))
    result, peak = probe.watch(lambda: calls.append("run") or 42)
    assert result == 42
    assert (peak.allocated_bytes, peak.reserved_bytes, peak.process_bytes) == (123, 456, 789)
    assert calls[:4] == ["synchronize", "reset_peak_memory_stats", "run", "synchronize"]


def test_a_driver_that_tells_nothing_is_none(monkeypatch):
    import pynvml

    def refuse():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert memory._driver_bytes(torch.device("cuda")) is None


def load(**changed):
    return HostLoad(**{"at_s": 100.0, "busy_s": 50.0, "stolen_s": 1.0, "own_s": 5.0} | changed)


@pytest.mark.parametrize(
    ("later", "told"),
    [
        (load(at_s=102.0, busy_s=52.0, own_s=7.0), ()),
        (
            load(at_s=102.0, busy_s=53.0, own_s=7.0),
            ("other processes kept processors busy",),
        ),
        (
            load(at_s=102.0, busy_s=52.0, own_s=7.0, stolen_s=1.2),
            ("the hypervisor took processor time",),
        ),
    ],
)
def test_disturbances_by_hand(later, told):
    assert load().disturbances(later) == told


def busy():
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


def test_a_busy_neighbour_is_noticed():
    def watch():
        before = HostLoad.read([os.getpid()])
        time.sleep(1.0)
        return before.disturbances(HostLoad.read([os.getpid()]))

    neighbour = busy()
    try:
        told = in_child(watch, deadline_s=60).answer
    finally:
        neighbour.kill()
    assert "other processes kept processors busy" in told


def test_what_a_loader_worker_uses_is_our_own():
    def watch():
        before = HostLoad.read([os.getpid()])
        busy()
        time.sleep(1.0)
        return HostLoad.read([os.getpid()]).own_s - before.own_s

    assert in_child(watch, deadline_s=60).answer > 0.3

"""Memory that grows with every step: what is read, what is honest, and what leaks."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from stepbench.measuring.probes import growth, memory
from stepbench.measuring.probes.growth import MINIMUM_BYTES, Held, per_step
from tests.synthetic import MIB

OWN = "tests.training.own_workloads"


def readings(*held):
    """Four steps apart; pairs of bytes that tensors and the process hold."""
    return [
        Held(steps=4 * index, tensor_bytes=tensors, process_bytes=process)
        for index, (tensors, process) in enumerate(held)
    ]


@pytest.mark.parametrize(
    ("held", "grown"),
    [
        ([(0, 0), (4 * MIB, 0), (8 * MIB, 0)], MIB),
        ([(0, 0), (4 * MIB, 4 * MIB), (8 * MIB, 8 * MIB)], MIB),  # the same memory, seen twice
        ([(0, 0), (0, 12 * MIB), (0, 16 * MIB)], MIB),  # the part that grew least
        ([(0, 0), (400 * MIB, 400 * MIB), (400 * MIB, 400 * MIB)], 0.0),  # made once
        ([(0, 9 * MIB), (0, 5 * MIB), (0, MIB)], 0.0),  # what is given back
        ([(0, 0), (4 * MINIMUM_BYTES - 4, 0), (8 * MINIMUM_BYTES, 0)], 0.0),
        ([(None, 0), (None, 4 * MIB)], MIB),
        ([(None, None), (None, None)], None),
    ],
)
def test_what_a_step_adds(held, grown):
    assert per_step(readings(*held), on_host=True) == grown


def test_a_device_and_its_host_grow_apart():
    both = readings((0, 0), (4 * MIB, 8 * MIB))
    assert per_step(both, on_host=False) == 3 * MIB


def test_a_kernel_that_tells_no_unique_set_size_leaves_the_tensors(monkeypatch):
    without_smaps = SimpleNamespace(
        memory_full_info=lambda: SimpleNamespace(rss=1), children=lambda recursive: []
    )
    monkeypatch.setattr(psutil, "Process", lambda: without_smaps)
    probe = SimpleNamespace(held=lambda: 5)
    assert growth.held(probe, 3) == Held(steps=3, tensor_bytes=5, process_bytes=None)
    assert memory.host_bytes() == 0


@pytest.mark.parametrize(
    ("leak", "least", "most"),
    [("tensors", MIB, 2.2 * MIB), ("arrays", 6.4 * MIB, 9.6 * MIB), ("late", MIB, 2.2 * MIB)],
)
def test_a_leak_is_reported_whoever_holds_it(measured, leak, least, most):
    [one] = measured("baseline", f"{OWN}:leaking@what={leak}").rounds
    assert least <= one.case.growth_bytes_per_step < most


@pytest.mark.parametrize("workload", ["gpt-tiny", f"{OWN}:caching"])
def test_what_an_honest_process_keeps_is_no_leak(measured, workload):
    [one] = measured("baseline", workload).rounds
    assert one.case.growth_bytes_per_step == 0.0


FAULTS = """
import resource
import torch
from stepbench.measuring.probes.resident import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(64 * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

freely = min(faults() for _ in range(3))
keep_freed_memory()
# Blocks that are aligned need some turns until each finds a place that was freed.
print(freely, min(faults() for _ in range(6)))
"""


def test_freed_memory_is_kept_where_two_processes_are_compared():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    freely, kept = map(int, done.stdout.split())
    assert freely >= 4 * 64 * 2**20 // 4096
    assert kept < 100

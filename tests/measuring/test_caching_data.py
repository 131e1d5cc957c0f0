"""Data that cache what they made: no peak depends on how many batches were loaded before it."""

import functools
import gc

import numpy
import pytest
import torch

from stepbench.measuring.probes import resident
from stepbench.measuring.probes.memory import CpuMemory
from stepbench.measuring.probes.reachable import tensors_in
from stepbench.measuring.settings import Settings
from tests.synthetic import MIB

CACHING = "tests.training.own_workloads:caching"
ELSEWHERE = [torch.ones(1)]


def after(measured, steps, combination="baseline", what="tensors"):
    settings = Settings(rounds=1, extra_rounds=0, max_steps=steps, min_steps=steps)
    record = measured(combination, f"{CACHING}@what={what}", settings)
    assert record.outcome.ok, record.outcome
    return record.rounds[0].case.memory


@pytest.mark.parametrize("what", ["tensors", "tensors_of_arrays"])
def test_what_a_dataset_caches_is_in_no_peak(measured, what):
    """1 MiB of each of two points a step, where model and optimizer hold some 20 KiB."""
    few, many = after(measured, 3, what=what), after(measured, 12, what=what)
    loaded = after(measured, 3, "workers2", what)
    peaks = [one.steady_step.allocated_bytes for one in (few, many, loaded)]
    assert max(peaks) - min(peaks) < 2048  # a batch, which workers hand over in shared memory
    assert 16 * 1024 < min(peaks) < 64 * 1024


def test_the_peak_of_a_process_that_keeps_what_is_no_tensor_is_not_told(measured):
    assert after(measured, 12, what="arrays").process_peak_bytes is None
    if resident.anonymous_peak_bytes(lambda: None) is None:
        pytest.skip("this kernel does not set the mark of the most resident memory back")
    assert 0 < after(measured, 12).process_peak_bytes < 8 * MIB


class Holder:
    of_class = torch.ones(2)

    def __init__(self):
        own, cached = torch.ones(3), functools.lru_cache(lambda: torch.ones(4))
        self.cached, self.closed_over = cached, lambda: own
        self.deep = [{"one": (torch.ones(5), 7, "text")}]
        self.itself = self
        cached()

    def elsewhere(self):
        return ELSEWHERE


def test_tensors_are_found_however_deep_they_are_held():
    assert sorted(map(len, tensors_in(Holder()))) == [2, 3, 4, 5]
    gc.collect()


def test_only_what_torchs_allocator_gave_is_its():
    assert CpuMemory().bytes_in([torch.ones(1024), torch.ones(1024)[:1]]) == 2 * 4096
    of_numpy = torch.from_numpy(numpy.ones(1024))
    assert CpuMemory().bytes_in([of_numpy, torch.ones(8).share_memory_()]) == 0

"""Run delay: counted where the thread really waits for a processor, unknown where it cannot be."""

import hashlib
import os
import threading
import time

import pytest
import torch

from stepbench.measuring.probes import run_delay
from stepbench.measuring.probes.run_delay import RunDelay
from stepbench.measuring.probes.timing import time_steps

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _probed_afresh():
    run_delay.sound.cache_clear()
    yield
    run_delay.sound.cache_clear()


def spin(going_on):
    block = bytes(1 << 20)
    while going_on():
        hashlib.sha256(block)


def spin_for(seconds):
    until = time.perf_counter() + seconds
    spin(lambda: time.perf_counter() < until)


@pytest.mark.skipif(not run_delay.sound(), reason="this kernel does not count run delay")
def test_a_rival_on_the_only_processor_is_counted_and_sleeping_is_not():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    done = threading.Event()
    rival = threading.Thread(target=spin, args=(lambda: not done.is_set(),))
    try:
        rival.start()
        crowded = time_steps(lambda: spin_for(0.05), 1, CPU)
    finally:
        done.set()
        rival.join()
        os.sched_setaffinity(0, allowed)
    [step_s], [cpu_s], [delay_s] = crowded.step_s, crowded.cpu_s, crowded.delay_s
    assert delay_s > 0.01
    assert delay_s < step_s
    assert cpu_s > 0  # of both threads: it cannot say who waited
    waiting = RunDelay()
    before_ns, began_ns = waiting.read_ns(), time.perf_counter_ns()
    time.sleep(0.5)
    delay_ns, took_ns = waiting.read_ns() - before_ns, time.perf_counter_ns() - began_ns
    assert delay_ns < took_ns - 0.4e9


@pytest.mark.parametrize("content", ["0 0 0\n", "", "kernel without numbers\n", None])
def test_zeros_or_an_absent_file_mean_unknown_not_quiet(tmp_path, monkeypatch, content):
    file = tmp_path / "schedstat"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(run_delay, "SCHEDSTAT", str(file))
    assert not run_delay.sound()
    assert RunDelay().read_ns() is None
    assert time_steps(lambda: None, 3, CPU).delay_s == ()


def test_another_thread_than_the_main_one_does_not_ask():
    told = []
    other = threading.Thread(target=lambda: told.append(RunDelay().read_ns()))
    other.start()
    other.join()
    assert told == [None]

"""Checks of what driver and kernel tell: NVML, memory of a process, run delay, the sandbox."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from stepbench.measuring.probes.device import DeviceSampler, Sample
from stepbench.measuring.probes.memory import host_bytes, memory_probe
from stepbench.measuring.probes.run_delay import SCHEDSTAT, sound
from stepbench.records.machine import device_type
from stepbench.selfcheck.checking import Machine, NotHere, device_of, require

MIB = 2**20
BUSY_S = 1.5
# syslog(2): all messages that the kernel's ring holds.
SYSLOG_READ_ALL = 3
# The counter of energy and the reading of power average over unlike times; a wrong unit is 1000x.
POWER_FACTOR = 3.0
LEAST_TORCH = "2.11"
LIBRARIES = ("numpy", "triton", "torchao", "bitsandbytes", "peft")


def clocks(machine: Machine) -> str:
    """The SM clock and temperature of a busy GPU."""
    samples = _busy_samples(machine)
    told = _known([one.clock_mhz for one in samples], "clock")
    heat = [one.temperature_c for one in samples if one.temperature_c is not None]
    require(min(told) > 0, f"NVML tells a clock of {min(told)} MHz")
    return f"{min(told)} to {max(told)} MHz at {max(heat, default='unknown')} °C"


def power(machine: Machine) -> str:
    """The power that a busy GPU draws."""
    told = _known([one.power_w for one in _busy_samples(machine)], "power")
    require(min(told) > 0, f"NVML tells a power of {min(told)} W")
    return f"{min(told):.0f} to {max(told):.0f} W"


def energy(machine: Machine) -> str:
    """The energy counter of a busy GPU, against its power."""
    samples = _busy_samples(machine)
    _known([one.energy_j for one in samples], "energy")
    watts = statistics.fmean(_known([one.power_w for one in samples], "power"))
    first, *_, last = ((one.at_s, one.energy_j) for one in samples if one.energy_j is not None)
    by_energy = (last[1] - first[1]) / (last[0] - first[0])
    told = f"{by_energy:.0f} W by the energy counter, {watts:.0f} W by power"
    require(watts / POWER_FACTOR <= by_energy <= watts * POWER_FACTOR, told)
    return told


def _busy_samples(machine: Machine) -> Sequence[Sample]:
    sampler = DeviceSampler(0)
    left = torch.randn(4096, 4096, device=device_of(machine), dtype=torch.float16)
    until_s = time.monotonic() + BUSY_S
    while time.monotonic() < until_s or len(sampler.samples) == 1:  # a slow GPU: two at least
        for _ in range(50):
            left @ left
        torch.cuda.synchronize()
        sampler.sample()
    if not sampler.samples:
        raise NotHere("unknown: NVML does not answer here")
    return sampler.samples


def _known(told: Sequence[float | None], what: str) -> list[float]:
    known = [one for one in told if one is not None]
    if not known:
        raise NotHere(f"unknown: NVML tells no {what} on this GPU")
    return known


def device_memory(machine: Machine) -> str:
    """What the driver says that this process holds on the device."""
    device = device_of(machine)
    _, peak = memory_probe(device).watch(
        lambda: torch.ones(64 * MIB, dtype=torch.uint8, device=device)
    )
    if peak.process_bytes is None:
        raise NotHere("unknown: NVML does not show this process' memory (containers hide it)")
    told = f"{peak.process_bytes / MIB:.0f} MiB by NVML's list of processes"
    require(peak.process_bytes >= 64 * MIB, f"{told}, but 64 MiB are held")
    return told


def host_memory(machine: Machine) -> str:
    """Whether 64 MiB that were written are 64 MiB more of this process' memory in /proc."""
    before = host_bytes()
    held = bytearray(os.urandom(MIB) * 64)
    grown = host_bytes() - before
    if not before:
        raise NotHere("unknown: /proc tells no proportional set size here")
    told = f"{grown / MIB:.1f} MiB more after {len(held) // MIB} MiB were written"
    require(abs(grown - len(held)) <= 8 * MIB, told)
    return told


def run_delay(machine: Machine) -> str:
    """Whether schedstat tells the time that this process waited while another had its processor."""
    if not sound():
        raise NotHere(f"unknown: {SCHEDSTAT} does not count a delay that was forced")
    return f"{SCHEDSTAT} counts a delay that was forced"


def sandbox(machine: Machine) -> str:
    """Which kernel answers: gVisor's figures of processors and memory may not be the machine's."""
    name, messages = f"Linux {platform.release()}", _kernel_messages()
    if messages is None:
        raise NotHere(f"unknown: {name}, whose messages this user may not read")
    return f"gVisor, which calls itself {name}" if "gVisor" in messages else f"no gVisor, {name}"


def _kernel_messages() -> str | None:
    """What `dmesg` prints, which a small image may lack; None where the kernel refuses it."""
    buffer = ctypes.create_string_buffer(MIB)
    size = ctypes.CDLL(None).klogctl(SYSLOG_READ_ALL, buffer, len(buffer))
    return None if size < 0 else buffer.raw[:size].decode(errors="replace")


def versions(machine: Machine) -> str:
    """The versions of torch and of what it runs on; DoesNotWork where torch is too old."""
    told = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    if device_type(machine) == "cuda":
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        told += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
        told += [f"NCCL {nccl}", *(gpu["name"] for gpu in machine["gpus"])]
    told += [f"{name} {_version(name)}" for name in LIBRARIES]
    line = ", ".join(told)
    # torch's version compares as one, not as text.
    require(torch.__version__ >= LEAST_TORCH, f"{line}; torch must be {LEAST_TORCH} or later")
    return line


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is missing"

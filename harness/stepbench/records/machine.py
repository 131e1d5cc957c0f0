"""What machine is this?

`describe` asks the driver, so it runs in a child process (`measuring.process` forks one): asking
torch about CUDA in the parent would forbid forking workers from it.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from typing import Any

import psutil


def describe() -> dict[str, Any]:
    """This machine: processor, cores this process may use, memory, GPUs, and its folder's name.

    Imports torch and asks it for CUDA devices. No host name, driver or kernel.
    """
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append(
                {
                    "name": properties.name,
                    "memory_bytes": properties.total_memory,
                    "capability": f"{properties.major}.{properties.minor}",
                    "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
                }
            )
    machine: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "architecture": platform.machine(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
    }
    return {"name": machine_name(machine), **machine}


def require_machine(machine: Mapping[str, Any]) -> None:
    """ValueError unless a machine that was read back says of itself what is shown and compared."""
    kinds = {"name": str, "cpu": str, "cores": int, "memory_bytes": int, "instruction_set": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(machine.get(name), kind)]
    gpus = machine.get("gpus")
    if not isinstance(gpus, list) or not all(
        isinstance(gpu, Mapping) and isinstance(gpu.get("name"), str) for gpu in gpus
    ):
        wrong.append("gpus")
    if wrong:
        raise ValueError(f"the machine lacks {', '.join(wrong)}, or has them of a wrong kind")


def machine_name(machine: Mapping[str, Any]) -> str:
    """A folder-safe name: the GPUs where there are any, else the processor and its cores."""
    gpus = [gpu["name"] for gpu in machine["gpus"]]
    words = f"{len(gpus)}x {gpus[0]}" if gpus else f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:60] or "machine"


def summary(machine: Mapping[str, Any]) -> str:
    """One line for a table's caption."""
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    memory_gib = machine["memory_bytes"] / 2**30
    return (
        f"{machine['cpu']} ({machine['instruction_set']}), {machine['cores']} cores, "
        f"{memory_gib:.0f} GiB, {gpus}"
    )


def device_type(machine: Mapping[str, Any]) -> str:
    """`cuda` where the machine has a GPU, else `cpu`."""
    return "cuda" if machine["gpus"] else "cpu"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
            return next(names, platform.machine()).strip()
    except OSError:
        return platform.processor() or platform.machine()

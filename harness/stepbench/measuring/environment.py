"""What ran, as a record names it: code, data, versions and settings that decide a number."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from stepbench.measuring.ranks import Group
from stepbench.measuring.sources import digest_of_package, digest_of_workload, versions
from stepbench.records.case import Case
from stepbench.training.build import batch_dependent
from stepbench.training.data import data_digest
from stepbench.training.techniques import imports
from stepbench.training.types import Loop, Site


def environment(case: Case, loop: Loop, site: Site, group: Group) -> dict[str, Any]:
    """The keys that two processes must share for their numbers to be of the same thing."""
    cuda = site.device.type == "cuda"
    return {
        "stepbench_digest": digest_of_package(),
        "workload_digest": digest_of_workload(case.workload),
        "data_digest": data_digest(site.workload),
        "device": torch.cuda.get_device_name(site.device) if cuda else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "nccl": _nccl() if cuda else None,
        "batch_dependent": batch_dependent(site.workload, loop.model),
        "optimizer": site.workload.optimizer_kind,
        **versions(imports(case.combination)),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "backend": group.backend,
        "hosts": group.hosts,
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF")
        or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
    }


def _nccl() -> str | None:
    if not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))

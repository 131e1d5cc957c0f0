"""Over which samples BatchNorm takes its statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Counters
from stepbench.training.types import Axis, Plan, Site, Technique, Unsupported, Workload


def _synchronized(model: nn.Module, site: Site) -> nn.Module:
    if not any(isinstance(part, _BatchNorm) for part in model.modules()):
        raise Unsupported(f"{site.workload.name} has no BatchNorm whose statistics to share")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return]


def _needs_a_gpu(case: Case, machine: Mapping[str, Any]) -> str | None:
    if device_type(machine) == "cpu":
        return "sync-batchnorm needs GPUs: torch's SyncBatchNorm has no CPU kernels"
    return None


def _needs_ranks(workload: Workload, case: Case) -> str | None:
    if case.ranks == 1:
        return "sync-batchnorm on 1 rank is plain BatchNorm: choose 2 ranks or more"
    return None


def _other_than_local_statistics(workload: Workload) -> float | None:
    # What ranks are held against has local ones. Not the baseline's either: dropout, which makes a
    # workload batch dependent too, and micro-batches draw the ranks apart from one process.
    return None if workload.batch_dependent else 0.0


def _proof(synchronized: bool) -> Any:
    def proof(counters: Counters, plan: Plan) -> str | None:
        ran = any("batch_norm_gather_stats" in name for name in counters.operators)
        if ran == synchronized:
            return None
        return f"statistics were {'gathered from' if ran else 'not shared between'} ranks"

    return proof


NORMALIZATION = Axis(
    name="normalization",
    baseline="local-batchnorm",
    inside=True,
    examples=("local-batchnorm", "sync-batchnorm"),
    techniques=(
        Technique(
            name="local-batchnorm",
            about="BatchNorm's statistics are of a process' own micro-batch",
            proof=_proof(False),
        ),
        Technique(
            name="sync-batchnorm",
            about="BatchNorm's statistics are of all ranks' micro-batches",
            model=_synchronized,
            proof=_proof(True),
            unsupported=_needs_a_gpu,
            incompatible=_needs_ranks,
            tolerance=_other_than_local_statistics,
        ),
    ),
)

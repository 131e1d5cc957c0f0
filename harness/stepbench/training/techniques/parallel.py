"""Data parallelism: what every rank holds, and when ranks exchange gradients and parameters.

The global batch is split over the ranks; gradients are means over them. All but DataParallel run a
process a rank, in one group (NCCL on GPUs, gloo on CPUs).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.training import exchange, inner_gradients
from stepbench.training.threads import DataParallel
from stepbench.training.types import (
    Axis,
    Loop,
    MakeOptimizer,
    Site,
    Technique,
    Unsupported,
    Workload,
)

# Sums in another order, as under accumulation, grown over five updates.
TOLERANCE = 1e-3


def _same_unless_batch_dependent(workload: Workload) -> float | None:
    return None if workload.batch_dependent else TOLERANCE


def _one_rank_only(workload: Workload, case: Case) -> str | None:
    if case.ranks == 1:
        return None
    return f"{case.ranks} ranks need a data-parallel technique: choose ddp, zero1, fsdp2, …"


# --- DistributedDataParallel ---------------------------------------------------------------------


def _replicated(**options: Any) -> Callable[[nn.Module, Site], nn.Module]:
    def wrap(model: nn.Module, site: Site) -> nn.Module:
        where = [site.device] if site.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=where, **options)

    return wrap


def _reduce_with_the_last(loop: Loop, site: Site) -> Loop:
    """Gradients of earlier micro-batches stay where they are: one reduction a step."""

    def around(last: bool) -> AbstractContextManager[Any]:
        model = loop.model
        assert isinstance(model, DistributedDataParallel)
        return nullcontext() if last else model.no_sync()

    return replace(loop, around=(*loop.around, around))


def _ddp(name: str, about: str, **options: Any) -> Technique:
    return Technique(
        name=name,
        about=about,
        plan=lambda plan: replace(plan, distributed=True),
        model=_replicated(**options),
        loop=_reduce_with_the_last,
        proof=exchange.proof_replicated(
            bucket_view=options.get("gradient_as_bucket_view", False),
            static_graph=options.get("static_graph", False),
            finds_unused=options.get("find_unused_parameters", False),
        ),
        tolerance=_same_unless_batch_dependent,
    )


def unsharded(name: str) -> str:
    """The plain data parallelism that a data-parallel technique is the same mathematics as.

    It takes parameters without a gradient as sharding does, which `ddp` alone does not.
    """
    return "ddp" if name == "ddp" else "ddp-unused"


# --- ZeRO stage 1 --------------------------------------------------------------------------------


def _sharded_optimizer(make: MakeOptimizer, site: Site) -> MakeOptimizer:
    def make_on_shard(groups: Any) -> torch.optim.Optimizer:
        """Called on this rank's parameters only, which come in a group."""
        parameters = [one for group in groups for one in group["params"]]
        if not parameters:
            raise Unsupported("zero1 deals out whole tensors: there are fewer of them than ranks")
        optimizer = make(iter(parameters))
        if len(optimizer.param_groups) > 1:
            raise Unsupported(
                f"zero1 shards one group of parameters; {site.workload.name}'s optimizer makes "
                f"{len(optimizer.param_groups)}"
            )
        return optimizer

    return lambda parameters: ZeroRedundancyOptimizer(parameters, optimizer_class=make_on_shard)  # type: ignore[arg-type]


# --- FSDP2: ZeRO stages 2 and 3 ------------------------------------------------------------------


def _sharded(
    *, reshard_after_forward: bool, offload: bool = False
) -> Callable[[nn.Module, Site], nn.Module]:
    def shard(model: nn.Module, site: Site) -> nn.Module:
        pinned = site.device.type == "cuda"
        options: dict[str, Any] = {
            "mesh": site.mesh,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=site.plan.autocast,
                reduce_dtype=torch.float32 if site.plan.autocast else None,
            ),
            "offload_policy": CPUOffloadPolicy(pin_memory=pinned) if offload else OffloadPolicy(),
        }
        blocks = site.workload.blocks(model)
        if site.plan.autocast and any(isinstance(one, _BatchNorm) for one in model.modules()):
            raise Unsupported(
                "FSDP2 would give BatchNorm weights in 16 bits beside statistics in 32, which "
                "torch does not take: choose ddp or zero1"
            )
        # Backward needs the root's parameters first: gathering them twice would buy nothing, unless
        # they are all that there are.
        of_root = reshard_after_forward and not blocks
        _require_own_parameters(blocks, model, site)
        for block in blocks:
            fully_shard(block, reshard_after_forward=reshard_after_forward, **options)
        fully_shard(model, reshard_after_forward=of_root, **options)
        return model

    return shard


def _require_own_parameters(blocks: list[nn.Module], model: nn.Module, site: Site) -> None:
    def uses(module: nn.Module) -> Counter[nn.Parameter]:
        return Counter(one for _, one in module.named_parameters(remove_duplicate=False))

    everywhere = uses(model)
    if any(everywhere[one] != count for block in blocks for one, count in uses(block).items()):
        raise Unsupported(
            f"{site.workload.name} shares weights between a block and the rest, which cannot be "
            "sharded apart"
        )


def _scatter_with_the_last(*, reshard: bool) -> Callable[[Loop, Site], Loop]:
    """Reduce gradients once a step; where parameters stay gathered, let them until its end."""

    def edit(loop: Loop, site: Site) -> Loop:
        loop = inner_gradients.refused(loop)

        @contextmanager
        def around(last: bool) -> Iterator[None]:
            model = loop.model
            assert isinstance(model, FSDPModule)
            model.set_requires_gradient_sync(last)
            model.set_is_last_backward(last)
            model.set_reshard_after_backward(reshard or last)
            yield

        return replace(loop, around=(*loop.around, around))

    return edit


def _needs_a_device(case: Case, machine: Mapping[str, Any]) -> str | None:
    if device_type(machine) == "cpu":
        return "fsdp2-offload keeps shards in host memory: a CPU has no other memory to spare"
    return None


def _fsdp(
    name: str, about: str, *, also: tuple[str, ...] = (), reshard: bool, offload: bool = False
) -> Technique:
    return Technique(
        name=name,
        about=about,
        also=also,
        plan=lambda plan: replace(plan, distributed=True, shards=True, offloads=offload),
        model=_sharded(reshard_after_forward=reshard, offload=offload),
        loop=_scatter_with_the_last(reshard=reshard),
        proof=exchange.proof_fsdp_offload if offload else exchange.proof_fsdp(reshard=reshard),
        unsupported=_needs_a_device if offload else lambda case, machine: None,
        tolerance=_same_unless_batch_dependent,
    )


# --- DataParallel --------------------------------------------------------------------------------


def _in_threads(model: nn.Module, site: Site) -> nn.Module:
    if site.workload.loss is None:
        raise Unsupported(
            f"dataparallel gathers outputs, and {site.workload.name}'s model returns its loss: "
            "choose ddp"
        )
    wrapped = DataParallel(model, device_ids=list(range(site.ranks)))
    wrapped.autocast = site.plan.autocast
    return wrapped


def _needs_two_gpus(case: Case, machine: Mapping[str, Any]) -> str | None:
    if len(machine["gpus"]) < 2:
        return (
            f"dataparallel needs two GPUs, of which there are {len(machine['gpus'])}: torch would "
            "pass the model through unchanged"
        )
    if case.ranks < 2:
        return "dataparallel on one device is the plain model: choose 2 ranks or more"
    return None


PARALLEL = Axis(
    name="parallel",
    baseline="single",
    examples=(
        "single",
        "dataparallel",
        "ddp",
        "ddp-bucket-view",
        "ddp-static",
        "ddp-unused",
        "zero1",
        "zero2",
        "fsdp2",
        "fsdp2-offload",
    ),
    techniques=(
        Technique(
            name="single",
            about="one process on one device",
            proof=exchange.proof_single,
            incompatible=_one_rank_only,
        ),
        Technique(
            name="dataparallel",
            about="nn.DataParallel: one process, a thread and a copy of the model a GPU",
            model=_in_threads,
            proof=exchange.proof_threads,
            unsupported=_needs_two_gpus,
            tolerance=_same_unless_batch_dependent,
        ),
        _ddp("ddp", "every rank holds the model; gradients are all-reduced, once a step"),
        _ddp(
            "ddp-bucket-view",
            "ddp whose gradients lie in the buckets that are reduced, not beside them",
            gradient_as_bucket_view=True,
        ),
        _ddp(
            "ddp-static",
            "ddp that is told its graph never changes; gradients lie in the buckets",
            gradient_as_bucket_view=True,
            static_graph=True,
        ),
        _ddp(
            "ddp-unused",
            "ddp that looks in every step for parameters without a gradient",
            find_unused_parameters=True,
        ),
        replace(
            _ddp("zero1", "ddp whose optimizer state is sharded (ZeRO stage 1)"),
            optimizer=_sharded_optimizer,
            proof=exchange.proof_zero1,
        ),
        _fsdp(
            "zero2",
            "fully_shard by block, gathered from forward to the end of backward (ZeRO stage 2)",
            also=("fsdp2-no-reshard",),
            reshard=False,
        ),
        _fsdp(
            "fsdp2",
            "fully_shard by block, gathered only while it runs (ZeRO stage 3)",
            also=("zero3",),
            reshard=True,
        ),
        _fsdp(
            "fsdp2-offload",
            "fsdp2 whose shards and optimizer live in host memory",
            reshard=True,
            offload=True,
        ),
    ),
)

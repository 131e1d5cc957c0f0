"""What waits in host memory while the device does not need it: activations, optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch.autograd.graph import save_on_cpu

from stepbench.records.case import Case
from stepbench.records.machine import device_type
from stepbench.records.measurement import Counters
from stepbench.training.types import Axis, Loop, MakeOptimizer, Plan, Site, Technique


def _saved_on_the_host(loop: Loop, site: Site) -> Loop:
    return replace(
        loop, around=(*loop.around, lambda last: save_on_cpu(pin_memory=True, device_type="cuda"))
    )


def _updated_on_the_host(make: MakeOptimizer, site: Site) -> MakeOptimizer:
    def offloaded(parameters: Any) -> Any:
        from torchao.optim import CPUOffloadOptimizer

        # It makes one optimizer for each parameter, of the same kind.
        optimizer = CPUOffloadOptimizer(list(parameters), optimizer_class=make)
        if optimizer.d_opt is not None:
            # Else a schedule would set the rates of the groups that this one was made from.
            optimizer.d_param_groups = optimizer.d_opt.param_groups
        return optimizer

    return offloaded


def _needs_a_device(what: str) -> Callable[[Case, Mapping[str, Any]], str | None]:
    def unsupported(case: Case, machine: Mapping[str, Any]) -> str | None:
        if device_type(machine) == "cpu":
            return f"{what} move to host memory: a CPU has no other memory that they could leave"
        return None

    return unsupported


def _proof_activations(counters: Counters, plan: Plan) -> str | None:
    on_host, on_device = counters.saved_host_bytes, counters.saved_bytes
    if on_host > on_device:
        return None
    return f"{on_host} bytes were saved in host memory and {on_device} on the device"


def _proof_state(counters: Counters, plan: Plan) -> str | None:
    on_host, kept = counters.host_state_elements, sum(counters.state_elements.values())
    if 2 * on_host > kept:
        return None
    return f"{on_host} of {kept} elements of optimizer state were in host memory"


def _proof_on_device(counters: Counters, plan: Plan) -> str | None:
    # A workload's own scalars may live on the host, as those of some optimizers do.
    if _proof_activations(counters, plan) is None:
        return f"{counters.saved_host_bytes} bytes were saved in host memory"
    if not plan.offloads and _proof_state(counters, plan) is None:
        return f"{counters.host_state_elements} elements of optimizer state were in host memory"
    return None


OFFLOAD = Axis(
    name="offload",
    baseline="on-device",
    examples=("on-device", "offload-activations", "offload-optimizer"),
    techniques=(
        Technique(
            name="on-device",
            about="everything stays where it is computed",
            proof=_proof_on_device,
        ),
        Technique(
            name="offload-activations",
            about="what backward needs waits in pinned host memory (save_on_cpu)",
            loop=_saved_on_the_host,
            proof=_proof_activations,
            unsupported=_needs_a_device("activations"),
        ),
        Technique(
            name="offload-optimizer",
            about="optimizer state and update in host memory (torchao)",
            imports=("torchao.optim",),
            optimizer=_updated_on_the_host,
            proof=_proof_state,
            unsupported=_needs_a_device("optimizer state and update"),
            # The host's kernels round in other places.
            tolerance=lambda workload: 1e-3,
        ),
    ),
)

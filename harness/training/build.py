"""Builds the loop of a case: all plans, then all models, then all optimizers, then all loops."""

from __future__ import annotations

import torch

from harness.core import Combination
from harness.training.step import plain_loop
from harness.training.techniques import chosen_techniques
from harness.training.types import Loop, Plan, Site, Workload


def build(workload: Workload, combination: Combination, device: torch.device) -> tuple[Loop, Site]:
    """The loop and the site it stands on; seeds torch's generators from the workload.

    Raises:
        Unsupported: a technique cannot apply to this model.
        StepbenchError: the workload is no whole one.
    """
    techniques = chosen_techniques(combination)
    plan = Plan()
    for technique in techniques:
        plan = technique.plan(plan)
    site = Site(workload=workload, plan=plan, device=device)
    # Weights come from the CPU's generator whatever the device: without it there is no parity.
    torch.manual_seed(workload.seed)
    model = workload.model().to(device)
    for technique in techniques:
        model = technique.model(model, site)
    make_optimizer = workload.optimizer
    for technique in techniques:
        make_optimizer = technique.optimizer(make_optimizer, site)
    loop = plain_loop(model, make_optimizer(model.parameters()), site)
    for technique in techniques:
        loop = technique.loop(loop, site)
    return loop, site

"""Offloading by stand-ins: a CPU has no other memory to offload to."""

import pytest
import torch

from stepbench.training.techniques import find
from stepbench.training.types import Plan, Site
from tests.extras import needs
from tests.training.small import CPU, tiny


class StandIn:
    """Updates all it is given on the device, as torchao's does small tensors."""

    def __init__(self, parameters, optimizer_class):
        self.d_param_groups = [{"params": list(parameters), "lr": 3e-4}]
        self.d_opt = optimizer_class([dict(group) for group in self.d_param_groups])


@needs("torchao")
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_schedule_reaches_the_groups_that_update(monkeypatch, kind):
    import torchao.optim

    monkeypatch.setattr(torchao.optim, "CPUOffloadOptimizer", StandIn)
    site = Site(workload=tiny(), plan=Plan(), device=CPU)
    make = find("offload-optimizer")[1].optimizer(kind, site)
    optimizer = make(torch.nn.Linear(2, 2).parameters())
    for group in optimizer.d_param_groups:
        group["lr"] = 1.0
    assert {group["lr"] for group in optimizer.d_opt.param_groups} == {1.0}

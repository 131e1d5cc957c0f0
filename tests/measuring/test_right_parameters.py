"""After some steps every rank technique holds the parameters of a plain loop in one process."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.tensor import DTensor

from stepbench.measuring.process import in_children
from stepbench.measuring.ranks import Group, Place
from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.step import train_step
from stepbench.training.techniques import parse
from tests.training.small import by_hand, relative, tiny

STEPS = 3
# Sums in another order give gradients 2e-7 apart; AdamW divides them by their own size, so that
# those near zero move whole steps: 3 of 3e-4 beside weights of 2e-2.
TOLERANCE = 1e-5

NAMES = ["ddp", "ddp-bucket-view", "ddp-static", "zero1", "zero2", "fsdp2", "fsdp2-offload"]
WITH = ["", "accum2+", "ckpt1+", "accum2+ckpt1+"]
CASES = [
    with_ + name for name in NAMES for with_ in WITH if not ("accum" in with_ and "static" in name)
]


def whole(parameter: torch.Tensor) -> torch.Tensor:
    detached = parameter.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached.clone()


def distances(ranks: int, rank: int, file: str) -> dict[str, float]:
    """{combination: relative distance of this rank's parameters from the plain loop's}."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    group = Group(
        Place(rank=rank, ranks=ranks, file=file), device, deadline_s=60, host_tensors=False
    )
    workload = tiny()
    expected = by_hand(workload, STEPS)[0]
    found = {}
    for name in CASES:
        loop, site = build(workload, parse(name), device, ranks=ranks, rank=rank, mesh=group.mesh)
        batches = Batches(workload, site.plan, part=(rank, ranks))
        for _ in range(STEPS):
            train_step(loop, next(batches), site)
        found[name] = relative([whole(p) for p in loop.model.parameters()], expected)
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_parameters_equal_the_plain_loops(tmp_path, ranks):
    file = str(tmp_path / "meeting")
    tasks = [(distances, ranks, rank, file) for rank in range(ranks)]
    for ended in in_children(tasks, deadline_s=120):
        assert ended.death is None, ended.traceback
        assert set(ended.answer) == set(CASES)
        far = {name: one for name, one in ended.answer.items() if not one < TOLERANCE}
        assert far == {}

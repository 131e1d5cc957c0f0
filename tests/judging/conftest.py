"""Sides small enough to pair for real in half a second."""

import pytest

from harness.core import Case
from harness.measuring.settings import Settings
from harness.measuring.sweep import this_machine
from harness.training.techniques import parse
from harness.verdicts import Side

QUICK = Settings(rounds=1, max_steps=3, min_steps=3, deadline_s=60)

# A project of its own: a workload whose step can be slowed, made to hold more, or broken by edits.
TRAIN = """
import torch
from torch import nn

from harness.training import Workload

EXTRA = 0


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
        self.held = torch.zeros(0)

    def forward(self, inputs):
        for _ in range(EXTRA):
            self.layers[0].weight.detach().T @ self.layers[0].weight.detach()
        return self.layers(inputs)


class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        drawn = torch.randn(64, generator=torch.Generator().manual_seed(index))
        return drawn, drawn.flip(0)


def workload():
    return Workload(
        model=Model, dataset=Noise, loss=nn.functional.mse_loss, global_batch=8,
    )
"""


@pytest.fixture(scope="session")
def machine():
    return this_machine()


def side(combination: str = "baseline", workload: str = "gpt-tiny", tree: str | None = None):
    return Side(case=Case(workload=workload, combination=parse(combination)), tree=tree)

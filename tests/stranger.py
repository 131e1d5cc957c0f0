"""A project of a stranger's: a workload whose step edits slow, make hold more, or break."""

TRAIN = """
import torch
from torch import nn

from stepbench import Workload

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

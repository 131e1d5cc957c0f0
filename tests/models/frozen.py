"""Models of which a part is frozen, did not run, or gets no gradient."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from stepbench import Workload

WIDTH, CLASSES, SAMPLES, WORDS = 64, 4, 64, 512


class Points(Dataset):
    """64 points with a class; `sample(point, label)` makes the sample of them."""

    def __init__(self, sample=lambda point, label: (point, label)):
        draw = torch.Generator().manual_seed(3)
        self.points = torch.randn(SAMPLES, WIDTH, generator=draw)
        self.labels = torch.randint(CLASSES, (SAMPLES,), generator=draw)
        self.sample = sample

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return self.sample(self.points[index], self.labels[index])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.wide = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden):
        return hidden + self.narrow(torch.relu(self.wide(self.norm(hidden))))


class Stack(nn.Module):
    """Four blocks and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, hidden):
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def workload(model, **options):
    return Workload(
        **{
            "model": model,
            "dataset": Points,
            "loss": functional.cross_entropy,
            "global_batch": 8,
            "blocks": lambda model: list(model.blocks),
        }
        | options
    )


class InNumpy(Stack):
    """Holds 16 MiB for backward that are no tensor."""

    def forward(self, hidden):
        return super().forward(_Held.apply(hidden))


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden):
        ctx.held = np.ones(2**21)
        return hidden.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float(ctx.held[0])


def in_numpy():
    return workload(InNumpy)


class PartlyFrozen(Stack):
    """The first two blocks are frozen, as in finetuning."""

    def __init__(self):
        super().__init__()
        self.blocks[:2].requires_grad_(False)


class OneLeftOut(Stack):
    """A block that never runs, as layer dropping or a switched-off branch leaves it."""

    def forward(self, hidden):
        for index, block in enumerate(self.blocks):
            hidden = hidden if index == 1 else block(hidden)
        return self.head(hidden)


class NeverUsed(Stack):
    """A part that no loss depends on, as a published model's pooler."""

    def __init__(self):
        super().__init__()
        self.pooler = nn.Linear(WIDTH, WIDTH)


class Branching(Stack):
    """Each block runs only where the batch's mean says so: another choice on every rank."""

    def forward(self, hidden):
        for index, block in enumerate(self.blocks):
            if index == 0 or (hidden[:, index].mean() > 0).item():
                hidden = block(hidden)
        return self.head(hidden)


class Sparse(nn.Module):
    """An embedding whose gradients are sparse."""

    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(WORDS, WIDTH, sparse=True, mode="sum")
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, points):
        hidden = self.words((points.abs() * 100).long() % WORDS)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def partly_frozen():
    return workload(PartlyFrozen)


def one_left_out():
    return workload(OneLeftOut)


def never_used():
    return workload(NeverUsed)


def branching():
    return workload(Branching, batch_dependent=True)


def sparse():
    return workload(Sparse, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3))

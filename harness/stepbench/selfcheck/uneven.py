"""Workloads whose steps do not cost alike: a text model, and an optimizer with a slow tenth step.

`stepbench selfcheck overhead` compares what is shown of them with a plain loop's time over the same
batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from stepbench.training.types import Workload

SAMPLES, WIDTH, VOCABULARY, PADDING = 512, 64, 256, -100
EVERY = 10


class Texts(Dataset[Any]):
    """Texts of log-normal lengths: half of them below `tokens`, a few ten times as long."""

    def __init__(self, tokens: int, samples: int) -> None:
        draw = torch.Generator().manual_seed(7)
        lengths = torch.randn(samples, generator=draw).exp().mul(tokens).long() + 2
        self.texts = [torch.randint(VOCABULARY, (int(one),), generator=draw) for one in lengths]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.texts[index][:-1], self.texts[index][1:]


def padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch as long as its longest text."""
    inputs, targets = (list(side) for side in zip(*samples, strict=True))
    pad = nn.utils.rnn.pad_sequence
    return pad(inputs, batch_first=True), pad(targets, True, padding_value=PADDING)


class Reader(nn.Module):
    """Two blocks of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Any:
        hidden = self.tokens(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def texts(tokens: int = 30, samples: int = SAMPLES) -> Workload:
    """Batches of 8 texts, padded to the longest of each."""
    return Workload(
        model=Reader,
        dataset=lambda: Texts(tokens, samples),
        collate=padded,
        loss=lambda out, target: functional.cross_entropy(out.flatten(0, 1), target.flatten()),
        loss_terms=lambda targets: int((targets != PADDING).sum()),
        uneven_terms=True,
        global_batch=8,
    )


class Decomposing(torch.optim.AdamW):
    """AdamW that decomposes a matrix with every tenth step, as SOAP and Shampoo do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=3e-4)
        self.updates = 0
        self.matrix = torch.eye(SAMPLES) + torch.ones(SAMPLES, SAMPLES)

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.updates += 1
        if self.updates % EVERY == 0:
            torch.linalg.eigh(self.matrix)
        return loss


class Points(Dataset[Any]):
    """Points of no meaning."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((SAMPLES,), index / SAMPLES), torch.tensor(index % 2)


def periodic() -> Workload:
    """A model of two layers under that optimizer."""
    return Workload(
        model=lambda: nn.Sequential(nn.Linear(SAMPLES, 1024), nn.ReLU(), nn.Linear(1024, 2)),
        dataset=Points,
        loss=functional.cross_entropy,
        optimizer=Decomposing,
        global_batch=256,
    )

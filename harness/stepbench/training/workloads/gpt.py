"""A decoder-only transformer on bytes of real text.

GPT-2's shape with what has replaced its parts since: normalisation before each part, no biases,
fused causal attention, tied embeddings, residual projections initialised at 1/√(2 × layers) of the
rest. The text is `pydoc_data.topics`, which every Python carries; a token is a byte.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from stepbench.training.types import Workload
from stepbench.training.workloads.spelling import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a name stands for; what `OPTIONS` names can be set in the spelling.

    `norm`: each part's input is normalised, or, as the first transformers were, its sum.
    `loss_factor` multiplies the loss, and so every gradient: what a number format's range is for.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int = 50_304
    seq: int = 1024
    batch: int = 16
    dropout: float = 0.0
    norm: Literal["pre", "post"] = "pre"
    loss_factor: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        right = (
            self.seq >= 1
            and self.batch >= 1
            and 0 <= self.dropout < 1
            and 0 < self.loss_factor < math.inf
            and self.seed >= 0
        )
        rule = (
            "seq and batch must be at least 1, dropout in [0, 1), loss_factor above 0, "
            "seed at least 0"
        )
        require(right, self, OPTIONS, rule)


OPTIONS = ("seq", "batch", "dropout", "norm", "loss_factor", "seed")
SHAPES = {
    "gpt-tiny": Shape(layers=2, width=32, heads=2, vocabulary=256, seq=16, batch=8),
    "gpt-1m": Shape(layers=6, width=128, heads=4, vocabulary=256, seq=48, batch=8),
    "gpt-10m": Shape(layers=6, width=384, heads=6, vocabulary=256, seq=256, batch=8),
    "gpt-124m": Shape(layers=12, width=768, heads=12),
    "gpt-355m": Shape(layers=24, width=1024, heads=16),
    "gpt-774m": Shape(layers=36, width=1280, heads=20),
    "gpt-1.5b": Shape(layers=24, width=2304, heads=18),
}


class Block(nn.Module):
    """Attention and a multilayer perceptron, each added to its input; normed before or after."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.dropout, self.norm = shape.heads, shape.dropout, shape.norm
        self.attention_norm = nn.LayerNorm(shape.width, bias=False)
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.attention_out = nn.Linear(shape.width, shape.width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(shape.width, bias=False)
        self.feed_forward_in = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.feed_forward_out = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, seq, width) -> (batch, seq, width)."""
        if self.norm == "post":
            hidden = self.attention_norm(hidden + self._dropped(self._attention(hidden)))
            return self.feed_forward_norm(hidden + self._dropped(self._feed_forward(hidden)))  # type: ignore[no-any-return]
        hidden = hidden + self._dropped(self._attention(self.attention_norm(hidden)))
        return hidden + self._dropped(self._feed_forward(self.feed_forward_norm(hidden)))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        return self.feed_forward_out(functional.gelu(self.feed_forward_in(hidden)))  # type: ignore[no-any-return]

    def _attention(self, hidden: Tensor) -> Tensor:
        batch, seq, width = hidden.shape
        split = self.query_key_value(hidden).view(batch, seq, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_out(mixed.transpose(1, 2).reshape(batch, seq, width))  # type: ignore[no-any-return]

    def _dropped(self, hidden: Tensor) -> Tensor:
        return functional.dropout(hidden, self.dropout, self.training)


class GPT(nn.Module):
    """(batch, seq) token numbers -> (batch, seq, vocabulary) logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.seq, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        # After the last block's own there is nothing left to normalise.
        last = shape.norm == "pre"
        self.norm = nn.LayerNorm(shape.width, bias=False) if last else nn.Identity()
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        self._initialise(shape.layers)

    def _initialise(self, layers: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                out = name.endswith(("attention_out.weight", "feed_forward_out.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if out else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.tokens(tokens) + self.positions(seen)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))  # type: ignore[no-any-return]


class TextWindows(Dataset[tuple[Tensor, Tensor]]):
    """Window i is bytes [i × seq, (i + 1) × seq), its targets the same shifted by one."""

    def __init__(self, text: bytes, seq: int) -> None:
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.seq = seq

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.seq

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = self.text[index * self.seq : (index + 1) * self.seq + 1].long()
        return window[:-1], window[1:]


@cache
def _text() -> bytes:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()


def _digest() -> str:
    return f"pydoc_data.topics sha256 {hashlib.sha256(_text()).hexdigest()[:16]}"


def _loss(logits: Tensor, targets: Tensor, factor: float) -> Tensor:
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return loss if factor == 1 else factor * loss


def workload(shape: Shape, name: str) -> Workload:
    """The workload of a shape, under its canonical name."""
    return Workload(
        name=name,
        model=partial(GPT, shape),
        dataset=lambda: TextWindows(_text(), shape.seq),
        loss=partial(_loss, factor=shape.loss_factor),
        loss_terms=lambda targets: targets.numel(),
        optimizer=partial(
            torch.optim.AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        ),
        global_batch=shape.batch,
        batch_dependent=shape.dropout > 0,
        blocks=lambda model: list(model.blocks),  # type: ignore[arg-type]
        seed=shape.seed,
        data_digest=_digest,
    )

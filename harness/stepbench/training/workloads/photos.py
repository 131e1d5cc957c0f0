"""A residual CNN on real photographs, decoded from JPEG and augmented in the loader.

The photographs are the two that scikit-learn ships. A sample is a random crop of one tile of one of
them, mirrored or not; its class is the tile. Decoding a whole JPEG for each sample is what makes
loading cost something, as it does in practice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from stepbench.errors import StepbenchError
from stepbench.training.types import Workload
from stepbench.training.workloads.spelling import require

# Tiles of one photograph, rows by columns.
TILES = (4, 4)
CLASSES = 2 * TILES[0] * TILES[1]
SAMPLES = 4096
# ImageNet's usual mean and deviation would be someone else's; these two photographs' are near it.
MEAN, DEVIATION = 0.45, 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a name stands for; `size` is the crop's side in pixels, `depth` blocks a stage."""

    width: int
    depth: int
    size: int
    batch: int
    norm: Literal["batch", "group", "none"] = "batch"
    seed: int = 0

    def __post_init__(self) -> None:
        right = self.size >= 8 and self.batch >= 1 and self.seed >= 0
        require(right, self, OPTIONS, "size must be at least 8, batch 1, seed 0")


OPTIONS = ("size", "batch", "norm", "seed")
SHAPES = {
    "cnn-tiny": Shape(width=8, depth=1, size=16, batch=8),
    "cnn-small": Shape(width=16, depth=2, size=48, batch=16),
    "cnn-20m": Shape(width=64, depth=4, size=224, batch=128),
}


class Block(nn.Module):
    """Two 3×3 convolutions, normalised, added to their input."""

    def __init__(self, channels: int, out: int, norm: str) -> None:
        super().__init__()
        stride = 1 if channels == out else 2
        self.first = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=norm == "none")
        self.first_norm = _norm(norm, out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=norm == "none")
        self.second_norm = _norm(norm, out)
        self.shortcut = (
            nn.Conv2d(channels, out, 1, stride=stride, bias=False) if stride > 1 else None
        )

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width); a block that widens also halves height and width."""
        hidden = functional.relu(self.first_norm(self.first(image)))
        hidden = self.second_norm(self.second(hidden))
        return functional.relu(hidden + (self.shortcut(image) if self.shortcut else image))


class CNN(nn.Module):
    """(batch, 3, size, size) -> (batch, CLASSES) logits: a stem and four stages of blocks."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = [shape.width * 2**stage for stage in range(4)]
        self.stem = nn.Conv2d(3, shape.width, 3, stride=2, padding=1, bias=shape.norm == "none")
        self.stem_norm = _norm(shape.norm, shape.width)
        channels = [width for stage_width in widths for width in [stage_width] * shape.depth]
        before = [shape.width, *channels[:-1]]
        self.blocks = nn.ModuleList(
            Block(given, out, shape.norm) for given, out in zip(before, channels, strict=True)
        )
        self.head = nn.Linear(widths[-1], CLASSES)
        self._start_as_identity()

    def _start_as_identity(self) -> None:
        """Let each block add nothing at first (Goyal et al. 2017, arXiv:1706.02677, 5.1)."""
        for block in self.blocks:
            assert isinstance(block, Block)
            last = block.second if isinstance(block.second_norm, nn.Identity) else block.second_norm
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Crops(Dataset[tuple[Tensor, int]]):
    """Sample `index` shows tile `index % CLASSES`; crop and mirroring change with the epoch."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.epoch = 0
        self.photographs = _photographs()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        label = index % CLASSES
        photograph, tile = divmod(label, TILES[0] * TILES[1])
        image = Image.open(io.BytesIO(self.photographs[photograph])).convert("RGB")
        draw = torch.Generator().manual_seed(
            (self.seed * 1_000_003 + self.epoch) * 1_000_003 + index
        )
        shift_y, shift_x, zoom, mirrored = torch.rand(4, generator=draw).tolist()
        rows, columns = image.height / TILES[0], image.width / TILES[1]
        side = min(rows, columns) * (0.6 + 0.4 * zoom)
        top = (tile // TILES[1]) * rows + shift_y * (rows - side)
        left = (tile % TILES[1]) * columns + shift_x * (columns - side)
        crop = image.resize((self.size, self.size), box=(left, top, left + side, top + side))
        pixels = torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(self.size, self.size, 3).permute(2, 0, 1).float() / 255
        pixels = (pixels - MEAN) / DEVIATION
        return (pixels.flip(2) if mirrored < 0.5 else pixels).contiguous(), label


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(min(8, channels), channels) if kind == "group" else nn.Identity()


@cache
def _photographs() -> tuple[bytes, bytes]:
    missing = [name for name in ("sklearn", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise StepbenchError(
            "the cnn workloads read photographs that scikit-learn ships, by Pillow: "
            "pip install 'stepbench[photos]'"
        )
    # Found, not imported: scikit-learn itself takes a second to import and is not needed.
    origin = importlib.util.find_spec("sklearn")
    assert origin is not None
    assert origin.origin is not None
    folder = Path(origin.origin).parent / "datasets" / "images"
    return (folder / "china.jpg").read_bytes(), (folder / "flower.jpg").read_bytes()


def _digest() -> str:
    return (
        f"china.jpg, flower.jpg sha256 {hashlib.sha256(b''.join(_photographs())).hexdigest()[:16]}"
    )


def workload(shape: Shape, name: str) -> Workload:
    """The workload of a shape, under its canonical name."""
    return Workload(
        name=name,
        model=partial(CNN, shape),
        dataset=partial(Crops, shape.size, shape.seed),
        loss=functional.cross_entropy,
        loss_terms=len,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4),
        global_batch=shape.batch,
        blocks=lambda model: list(model.blocks),  # type: ignore[arg-type]
        batch_dependent=shape.norm == "batch",
        seed=shape.seed,
        data_digest=_digest,
    )

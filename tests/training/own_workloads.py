"""Workloads of a user's own, as strange as they come."""

import math
import time
from dataclasses import replace

import numpy
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from stepbench import Workload

WIDTH, CLASSES, SAMPLES = 16, 4, 64


class Points(Dataset):
    """What `make(features, label)` makes of 64 points with a label."""

    def __init__(self, make):
        draw = torch.Generator().manual_seed(7)
        self.features = torch.randn(SAMPLES, WIDTH, generator=draw)
        self.labels = torch.randint(CLASSES, (SAMPLES,), generator=draw)
        self.make = make

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return self.make(self.features[index], self.labels[index])


class Perceptron(nn.Module):
    """No repeated blocks."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES)
        )

    def forward(self, features):
        return self.layers(features)


class LossInside(Perceptron):
    """Takes a dictionary's entries, returns the loss, as many published models do."""

    def forward(self, features, labels):
        return functional.cross_entropy(super().forward(features), labels)


class TwoInputs(Perceptron):
    def forward(self, pair):
        left, right = pair
        return super().forward(left + right)


class Ragged(nn.Module):
    """A token model with tied weights, blocks, and padding that the loss leaves out."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(CLASSES, WIDTH)
        layer = nn.TransformerEncoderLayer
        self.blocks = nn.ModuleList(
            layer(WIDTH, 2, 32, dropout=0.0, batch_first=True) for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, CLASSES)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        hidden = self.tokens(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def _ragged_sample(features, label):
    tokens = (features.abs() * 10).long() % CLASSES
    targets = tokens.roll(-1)
    targets[1 + int(label) * 4 :] = -100
    return tokens, targets


def plain(batch=8):
    return Workload(
        model=Perceptron,
        dataset=lambda: Points(lambda features, label: (features, label)),
        loss=functional.cross_entropy,
        global_batch=batch,
    )


def dictionary():
    return Workload(
        model=LossInside,
        dataset=lambda: Points(lambda features, label: {"features": features, "labels": label}),
        call=lambda model, batch: model(**batch),
        loss=None,
        global_batch=8,
    )


def pair():
    return Workload(
        model=TwoInputs,
        dataset=lambda: Points(lambda features, label: ((features, features.flip(0)), label)),
        loss=functional.cross_entropy,
        global_batch=8,
    )


ragged = Workload(
    model=Ragged,
    dataset=lambda: Points(_ragged_sample),
    loss=lambda logits, targets: functional.cross_entropy(logits.flatten(0, 1), targets.flatten()),
    loss_terms=lambda targets: int((targets != -100).sum()),
    blocks=lambda model: list(model.blocks),
    global_batch=8,
)


ragged_and_said_so = replace(ragged, uneven_terms=True)


def not_a_number():
    return Workload(
        model=Perceptron,
        dataset=lambda: Points(lambda features, label: (features * math.nan, label)),
        loss=functional.cross_entropy,
        global_batch=8,
    )


def text_in_the_batch():
    return Workload(
        model=Perceptron,
        dataset=lambda: Points(lambda features, label: ({"x": features, "name": "n"}, label)),
        loss=functional.cross_entropy,
        global_batch=8,
    )


def lacking():
    return Workload(model=Perceptron, global_batch=8)


nothing = 42


class Blocks(nn.Module):
    """Three blocks made by `make`, each called by `call`."""

    def __init__(self, make, call=lambda block, hidden: block(hidden)):
        super().__init__()
        self.blocks = nn.ModuleList(make() for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.call = call

    def forward(self, hidden):
        for block in self.blocks:
            hidden = torch.relu(self.call(block, hidden))
        return self.head(hidden)


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, *, hidden):
        return self.inner(hidden).tanh()


def _of_blocks(make, **options):
    return Workload(
        model=lambda: Blocks(make, **options),
        dataset=lambda: Points(lambda features, label: (features, label)),
        loss=functional.cross_entropy,
        blocks=lambda model: list(model.blocks),
        global_batch=8,
    )


def linear_blocks():
    return _of_blocks(lambda: nn.Linear(WIDTH, WIDTH))


def shared_activation():
    shared = nn.Tanh()
    return _of_blocks(lambda: nn.Sequential(shared, nn.Linear(WIDTH, WIDTH), shared))


def called_by_keyword():
    return _of_blocks(Keyword, call=lambda block, hidden: block(hidden=hidden))


def with_dropout():
    return _of_blocks(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)))


class FrozenBody(Blocks):
    """Blocks that are not trained, and a head of one output: fewer rows than ranks."""

    def __init__(self):
        super().__init__(lambda: nn.Linear(WIDTH, WIDTH))
        self.blocks.requires_grad_(False)
        self.head = nn.Linear(WIDTH, 1)


def frozen():
    return replace(
        linear_blocks(),
        model=FrozenBody,
        loss=lambda output, label: functional.mse_loss(output[:, 0], label.float()),
    )


class TiedBlocks(Blocks):
    def __init__(self):
        super().__init__(lambda: nn.Linear(WIDTH, WIDTH))
        self.blocks[1].weight = self.blocks[0].weight


def tied_blocks():
    return replace(linear_blocks(), model=TiedBlocks)


def two_groups():
    def make(parameters):
        each = list(parameters)
        return torch.optim.AdamW([{"params": each[:2]}, {"params": each[2:], "weight_decay": 0}])

    return replace(plain(), optimizer=make)


def one_tensor():
    return replace(plain(), model=lambda: nn.Linear(WIDTH, CLASSES, bias=False))


def one_large_tensor():
    """1 MiB in one shape."""
    return replace(plain(), model=lambda: nn.Linear(WIDTH, 2**14, bias=False))


class DroppedScores(Ragged):
    """Attention with dropout, which torch's fused kernel for CPUs has not."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer
        self.blocks = nn.ModuleList(
            layer(WIDTH, 2, 32, dropout=0.1, batch_first=True) for _ in range(3)
        )


dropout_in_attention = replace(ragged, model=DroppedScores)


class Breaking(Perceptron):
    """Reads a number in the middle of its forward, which no graph can hold."""

    def forward(self, features):
        hidden = self.layers[0](features)
        if hidden.sum().item() > 1e9:
            hidden = -hidden
        return self.layers[1:](hidden)


def breaks_its_graph():
    return replace(plain(), model=Breaking)


class InARow(nn.Module):
    """Three layers without a loop, in which no frame goes on behind what is not compiled."""

    def __init__(self, kept_out=False):
        super().__init__()
        self.first, self.middle = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, CLASSES)
        if kept_out:
            self.middle.forward = torch.compiler.disable(self.middle.forward)

    def forward(self, features):
        return self.last(self.middle(self.first(features)).relu())


def in_a_row(kept_out=False):
    return Workload(
        model=lambda: InARow(kept_out),
        dataset=lambda: Points(lambda features, label: (features, label)),
        loss=functional.cross_entropy,
        global_batch=8,
    )


def of_torchs_own_modules():
    return replace(plain(), model=lambda: Perceptron().layers)


class CompiledInside(Perceptron):
    def __init__(self):
        super().__init__()
        self.compile(backend="aot_eager")


def compiled_by_itself():
    return replace(plain(), model=CompiledInside)


def narrow():
    return _of_blocks(lambda: nn.Sequential(nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)))


def steep(factor=100.0):
    """A loss so large, or so small, that its gradients leave float16's range or a norm of 1."""
    return replace(
        plain(), loss=lambda output, target: factor * functional.cross_entropy(output, target)
    )


class Much(Points):
    """64 MiB of data beside what a sample needs, read in the constructor or with the first one."""

    def __init__(self, when):
        super().__init__(lambda features, label: (features, label))
        self.more = torch.zeros(2**24) if when == "at_once" else None

    def __getitem__(self, index):
        if self.more is None:
            self.more = torch.zeros(2**24)
        return super().__getitem__(index)


def much_data(when):
    return replace(plain(), dataset=lambda: Much(when))


class Unused(Perceptron):
    """A part that no loss depends on, as a published model's pooler."""

    def __init__(self):
        super().__init__()
        self.pooler = nn.Linear(WIDTH, 100)


def with_an_unused_part():
    return replace(plain(), model=Unused)


class Joined(nn.Module):
    """Two weights used as one: their gradients are views of the same tensor."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (nn.Parameter(torch.randn(2, WIDTH)) for _ in range(2))

    def forward(self, features):
        return functional.linear(features, torch.cat([self.one, self.other]))


def joined():
    return replace(plain(), model=Joined)


class Factors(nn.Module):
    """A table of points and one of classes, and no matrix product."""

    def __init__(self):
        super().__init__()
        self.points, self.bias = nn.Embedding(32, CLASSES), nn.Parameter(torch.zeros(CLASSES))

    def forward(self, features):
        return self.points((features[:, 0].abs() * 8).long() % 32) * 2 + self.bias


def without_products():
    return replace(plain(), model=Factors)


def amsgrad():
    return replace(
        plain(), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-4, amsgrad=True)
    )


class Bursts(Points):
    """Every 8th batch of 8 is waited for; the others are at hand."""

    def __init__(self):
        super().__init__(lambda features, label: (features, label))
        self.asked = 0

    def __getitem__(self, index):
        self.asked += 1
        if self.asked % 64 == 0:
            time.sleep(0.2)
        return super().__getitem__(index)


def in_bursts():
    return replace(plain(), dataset=Bursts)


class Leaking(Perceptron):
    """Keeps 1 MiB of each step's, `late` from the tenth on only.

    Of `arrays` 8 MiB: a process' memory scatters by 0.5 MiB a step on a busy machine.
    """

    def __init__(self, what):
        super().__init__()
        self.what, self.calls, self.kept = what, 0, []

    def forward(self, features):
        self.calls += 1
        if self.what == "arrays":
            self.kept.append(numpy.ones(2**20))
        elif self.what == "tensors" or self.calls >= 10:
            self.kept.append(torch.ones(2**18))
        return super().forward(features)


def leaking(what):
    return Workload(
        model=lambda: Leaking(what),
        dataset=lambda: Points(lambda features, label: (features, label)),
        loss=functional.cross_entropy,
        global_batch=8,
    )


class Caching(Points):
    """Keeps what it made of each point, 1 MiB."""

    def __init__(self, make):
        super().__init__(lambda features, label: (features, label))
        self.cached, self.kept = make, {}

    def __getitem__(self, index):
        if index not in self.kept:
            self.kept[index] = self.cached()
        return super().__getitem__(index)


CACHED = {
    "tensors": lambda: torch.ones(2**18),
    "arrays": lambda: numpy.ones(2**17),
    "tensors_of_arrays": lambda: torch.from_numpy(numpy.ones(2**17)),
}


def caching(what="tensors"):
    return Workload(
        model=Perceptron,
        dataset=lambda: Caching(CACHED[what]),
        loss=functional.cross_entropy,
        global_batch=2,
    )


class Longer(Points):
    """Sequences of 4 points in the first three epochs, of four batches each; then of 6."""

    epoch = 0

    def __init__(self):
        super().__init__(self._sequence)

    def _sequence(self, features, label):
        length = 6 if self.epoch >= 3 else 4
        return features.expand(length, WIDTH).clone(), label.expand(length).clone()


def longer_from_batch_12():
    return replace(
        plain(SAMPLES // 4),
        dataset=Longer,
        loss=lambda output, label: functional.cross_entropy(output.flatten(0, 1), label.flatten()),
        loss_terms=torch.numel,
    )


class Dropped(nn.Module):
    """A layer that some samples pass by, drawn in the type of its input."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        kept = torch.rand(len(hidden), 1, dtype=hidden.dtype) < 0.7
        return hidden + self.inner(hidden) * kept


def stochastic_depth():
    return _of_blocks(Dropped)

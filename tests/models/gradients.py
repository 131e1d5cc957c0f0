"""Models whose backward pass is no ordinary one, and weights that are no ordinary ones."""

import torch
from torch import nn
from torch.nn import functional

from tests.models.frozen import CLASSES, WIDTH, Block, Points, Stack, workload


def adamw(parameters):
    """As most people write it."""
    return torch.optim.AdamW(parameters, lr=3e-4)


class _Signs(torch.autograd.Function):
    """Signs, at each sample's scale; the gradient goes straight through (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx, hidden):
        ctx.save_for_backward(hidden)
        return torch.where(hidden > 0, 1.0, -1.0) * hidden.abs().mean(-1, keepdim=True)

    @staticmethod
    def backward(ctx, gradient):
        (hidden,) = ctx.saved_tensors
        return gradient * (hidden.abs() < 1)


class StraightThrough(Stack):
    """A custom autograd function between two blocks."""

    def forward(self, hidden):
        for block in self.blocks:
            hidden = hidden + 0.1 * _Signs.apply(block(hidden))
        return self.head(hidden)


def custom_function():
    return workload(StraightThrough, optimizer=adamw)


class TwoHeads(Stack):
    """A class, and the point itself: one of the blocks feeds both."""

    def __init__(self):
        super().__init__()
        self.back = nn.Linear(WIDTH, WIDTH)

    def forward(self, point):
        hidden = point
        for block in self.blocks:
            hidden = block(hidden)
        return {"classes": self.head(hidden), "again": self.back(hidden)}


def _class_and_point(output, targets):
    label, point = targets
    classes = functional.cross_entropy(output["classes"], label)
    return classes + 0.5 * functional.mse_loss(output["again"], point)


def two_losses():
    return workload(
        TwoHeads,
        dataset=lambda: Points(lambda point, label: (point, (label, point))),
        loss=_class_and_point,
        optimizer=adamw,
    )


class Critic(Stack):
    """Returns its loss with a penalty on its gradient by its input (Gulrajani et al. 2017)."""

    def forward(self, point, label):
        point = point.detach().requires_grad_()
        scores = super().forward(point)
        (slope,) = torch.autograd.grad(scores.sum(), point, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        return functional.cross_entropy(scores, label) + penalty


def gradient_penalty():
    return workload(
        Critic,
        dataset=lambda: Points(lambda point, label: {"point": point, "label": label}),
        call=lambda model, batch: model(**batch),
        loss=None,
        optimizer=adamw,
    )


class WeightNormed(Stack):
    """Every linear layer of the blocks is a direction and a length (Salimans & Kingma 2016)."""

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            nn.utils.parametrizations.weight_norm(block.wide)
            nn.utils.parametrizations.weight_norm(block.narrow)


def weight_norm():
    return workload(WeightNormed, optimizer=adamw)


class SpectralNormed(Stack):
    """Every forward pass in training goes one power iteration on (Miyato et al. 2018)."""

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            nn.utils.parametrizations.spectral_norm(block.wide)


def spectral_norm():
    return workload(SpectralNormed, optimizer=adamw)


class Spectral(nn.Module):
    """Complex weights on the lowest frequencies of its input (Li et al. 2021)."""

    def __init__(self, channels=8, modes=4):
        super().__init__()
        self.modes = modes
        drawn = torch.randn(channels, channels, modes, dtype=torch.cfloat)
        self.weight = nn.Parameter(drawn / channels)
        self.beside = nn.Conv1d(channels, channels, 1)

    def forward(self, hidden):
        waves = torch.fft.rfft(hidden)
        low = torch.einsum("bim,iom->bom", waves[..., : self.modes], self.weight)
        padded = functional.pad(low, (0, waves.shape[-1] - self.modes))
        return functional.gelu(torch.fft.irfft(padded, n=hidden.shape[-1]) + self.beside(hidden))


class FourierOperator(nn.Module):
    """A neural operator on functions of one variable."""

    def __init__(self):
        super().__init__()
        self.lift = nn.Conv1d(1, 8, 1)
        self.blocks = nn.ModuleList(Spectral() for _ in range(3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, points):
        hidden = self.lift(points[:, None])
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean(-1))


def complex_weights():
    return workload(FourierOperator, optimizer=adamw)


class Physics(nn.Module):
    """Learns u with u'' = -u from derivatives by its input, in double precision."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(1, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(2))
        self.leave = nn.Linear(32, 1)
        self.double()

    def forward(self, where):
        where = where.detach().requires_grad_()
        hidden = torch.tanh(self.enter(where))
        for block in self.blocks:
            hidden = block(hidden)
        u = self.leave(hidden)
        (first,) = torch.autograd.grad(u.sum(), where, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), where, create_graph=True)
        return (second + u).square().mean() + (u - where.sin()).square().mean()


def physics_informed():
    return workload(
        Physics,
        dataset=lambda: Points(lambda point, label: point[:1].double()),
        loss=None,
        optimizer=adamw,
    )


class Hyper(nn.Module):
    """One network draws the weights of another, which has none of its own (Ha et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(2, 16))
        self.maker = nn.Linear(16, 32 * 32)
        self.enter, self.head = nn.Linear(WIDTH, 32), nn.Linear(32, CLASSES)

    def forward(self, points):
        hidden = torch.relu(self.enter(points))
        for code in self.codes:
            weight = self.maker(code).view(32, 32) / 16
            hidden = hidden + torch.relu(functional.linear(hidden, weight))
        return self.head(hidden)


def hypernetwork():
    return workload(Hyper, blocks=lambda model: [], optimizer=adamw)


class TiedTwice(nn.Module):
    """An autoencoder that decodes by the transposed weights of its encoder, block by block."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.narrow = nn.Linear(WIDTH, 16)
        self.back = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, points):
        hidden = points
        for block in self.blocks:
            hidden = block(hidden)
        return functional.linear(self.narrow(hidden), self.narrow.weight.T, self.back)


def tied_autoencoder():
    return workload(
        TiedTwice,
        dataset=lambda: Points(lambda point, label: (point, point)),
        loss=functional.mse_loss,
        optimizer=adamw,
    )

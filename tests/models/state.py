"""Models that hold more than weights: buffers, draws, graphs, groups of parameters, a trainer."""

import torch
from torch import nn
from torch.nn import functional

from tests.models.frozen import CLASSES, WIDTH, Block, Points, Stack, workload
from tests.models.gradients import adamw


class Whitened(nn.Module):
    """Normalises by a running mean of what it has seen, which each forward pass moves on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.inner = Block()

    def forward(self, hidden):
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(hidden.mean(0), 0.1)
        return self.inner(hidden - self.mean)


class RunningMeans(Stack):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Whitened() for _ in range(3))


def buffers_in_forward():
    return workload(RunningMeans, optimizer=adamw)


class Codebook(nn.Module):
    """Vectors that follow the inputs nearest to them (van den Oord et al. 2017, appendix A)."""

    def __init__(self, size=16):
        super().__init__()
        self.register_buffer("codes", torch.randn(size, WIDTH))

    def forward(self, hidden):
        nearest = torch.cdist(hidden.detach().float(), self.codes).argmin(1)
        if self.training:
            with torch.no_grad():
                chosen = functional.one_hot(nearest, len(self.codes)).float()
                count = chosen.sum(0).clamp(min=1)[:, None]
                seen = (chosen.sum(0) > 0)[:, None]
                mean = chosen.T @ hidden.detach().float() / count
                self.codes.lerp_(torch.where(seen, mean, self.codes), 0.01)
        return hidden + (self.codes[nearest] - hidden).detach()


class Quantizing(nn.Module):
    """An autoencoder through a codebook."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.codebook, self.decoder = Codebook(), nn.Linear(WIDTH, WIDTH)

    def forward(self, points):
        hidden = points
        for block in self.blocks:
            hidden = block(hidden)
        return self.decoder(self.codebook(hidden))


def codebook():
    return workload(
        Quantizing,
        dataset=lambda: Points(lambda point, label: (point, point)),
        loss=functional.mse_loss,
        optimizer=adamw,
        batch_dependent=True,
    )


class Variational(nn.Module):
    """Draws its code (Kingma & Welling 2014); returns its loss."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.code, self.decoder = nn.Linear(WIDTH, 16), nn.Linear(8, WIDTH)

    def forward(self, points):
        hidden = points
        for block in self.blocks:
            hidden = block(hidden)
        mean, log_variance = self.code(hidden).chunk(2, dim=1)
        drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
        again = (self.decoder(drawn) - points).square().sum(1)
        return (again + divergence).mean()


def variational():
    return workload(
        Variational,
        dataset=lambda: Points(lambda point, label: point),
        loss=None,
        optimizer=adamw,
    )


class DropPath(nn.Module):
    """A block that some samples pass by (Huang et al. 2016)."""

    def __init__(self):
        super().__init__()
        self.inner = Block()

    def forward(self, hidden):
        kept = torch.rand(len(hidden), 1) < 0.8
        return torch.where(kept, self.inner(hidden), hidden)


class StochasticDepth(Stack):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(DropPath() for _ in range(3))


def stochastic_depth():
    return workload(StochasticDepth, optimizer=adamw)


NODES = 8


class Convolved(nn.Module):
    """Each node takes the mean of its neighbours (Kipf & Welling 2017), by scattering."""

    def __init__(self, width=32):
        super().__init__()
        self.own, self.others = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden, edges):
        sender, receiver = edges
        messages = self.others(hidden)[sender]
        into = torch.zeros_like(messages[:1]).expand(len(hidden), -1)
        summed = into.index_add(0, receiver, messages)
        degree = torch.bincount(receiver, minlength=len(hidden)).clamp(min=1)[:, None]
        return torch.relu(self.own(hidden) + summed / degree)


class GraphNetwork(nn.Module):
    """Classifies graphs of 8 nodes with 16 edges each."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(WIDTH // NODES, 32)
        self.blocks = nn.ModuleList(Convolved() for _ in range(2))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, graphs):
        hidden = self.enter(graphs["nodes"].flatten(0, 1))
        first = NODES * torch.arange(len(graphs["nodes"]), device=hidden.device)
        sender, receiver = (graphs["edges"] + first[:, None, None]).movedim(1, 0).flatten(1)
        for block in self.blocks:
            hidden = block(hidden, (sender, receiver))
        return self.head(hidden.unflatten(0, (-1, NODES)).mean(1))


def _graph(point, label):
    edges = (point[:32].abs() * 100).long().view(2, 16) % NODES
    return {"nodes": point.view(NODES, -1), "edges": edges}, label


def graph_network():
    return workload(GraphNetwork, dataset=lambda: Points(_graph), optimizer=adamw)


class Lit(Stack):
    """A module that knows its own loss and optimizer, as trainers want it."""

    def training_step(self, batch, batch_index):
        points, labels = batch["points"], batch["labels"]
        return functional.cross_entropy(self(points), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-4)


def lightning():
    """What is called is a method of the model, as its trainer calls it."""
    return workload(
        Lit,
        dataset=lambda: Points(lambda point, label: {"points": point, "labels": label}),
        call=lambda model, batch: model.training_step(batch, 0),
        loss=None,
        optimizer=lambda model: model.configure_optimizers(),
    )


def in_groups():
    """Rates that fall from layer to layer, and no decay of vectors."""

    def make(model):
        groups = [
            {"params": [one for one in block.parameters() if one.dim() == dims], "lr": 3e-4 * share}
            | ({"weight_decay": 0.0} if dims == 1 else {})
            for block, share in zip(model.blocks, (0.4, 0.6, 0.8, 1.0), strict=True)
            for dims in (1, 2)
        ]
        return torch.optim.AdamW([*groups, {"params": model.head.parameters()}], lr=3e-4)

    return workload(Stack, optimizer=make)

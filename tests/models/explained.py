"""Plain loops that show why an outcome is `invalid`: the technique gives another loss there.

Each returns how far, relative to the loss, the technique's is from the model's own, and how far it
may be. Nothing of Stepbench computes here; only the model, its data and its loss are the same.
"""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import default_collate

from tests.models import gradients, language, state

ALLOWED = 1e-3  # what accumulation and data parallelism may
ROUNDING = 1e-6


def redundancy_in_halves():
    """the loss of a batch is not the mean of the losses of its halves, which each rank or
    micro-batch takes: it correlates features over the samples that it is given."""
    workload = language.redundancy_reduction()
    torch.manual_seed(0)
    model, data = workload.model(), workload.dataset()

    def loss(indices):
        views, targets = default_collate([data[index] for index in indices])
        return float(workload.loss(model(views), targets).detach())

    whole, halves = loss(range(8)), (loss(range(4)) + loss(range(4, 8))) / 2
    return abs(halves - whole) / whole, ALLOWED


def buffers_moved_twice():
    """checkpointing calls each block again in backward, which moves its running mean once more:
    the second forward pass normalises by another mean than the first one did."""
    return _checkpointed_apart(state.buffers_in_forward()), ROUNDING


def power_iterated_twice():
    """checkpointing calls each block again in backward, which goes one power iteration on: the
    weights are divided by another estimate of their norm than in the first forward pass."""
    return _checkpointed_apart(gradients.spectral_norm()), ROUNDING


def _checkpointed_apart(workload):
    plain = _losses_and_norms(workload, checkpointed=False)
    assert plain == _losses_and_norms(workload, checkpointed=False)
    again = _losses_and_norms(workload, checkpointed=True)
    return max(abs(one - other) / one for one, other in zip(plain, again, strict=True))


def _losses_and_norms(workload, checkpointed):
    """Of three batches at the initial weights."""
    torch.manual_seed(0)
    model, data, told = workload.model(), workload.dataset(), []
    for block in workload.blocks(model) if checkpointed else []:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for first in (0, 8, 16):
        inputs, targets = default_collate([data[index] for index in range(first, first + 8)])
        model.zero_grad()
        loss = workload.loss(model(inputs), targets)
        loss.backward()
        norm = torch.nn.utils.get_total_norm(one.grad for one in model.parameters())
        told += [float(loss.detach()), float(norm)]
    return told


EXPLAINED = {
    ("buffers moved in forward", "ckpt1"): buffers_moved_twice,
    ("spectral norm", "ckpt1"): power_iterated_twice,
} | {
    ("two views, batch not said", technique): redundancy_in_halves
    for technique in ("accum2", "ddp", "zero2", "fsdp2")
}

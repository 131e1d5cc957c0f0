"""Plain loops that show why an outcome is `invalid`: the technique gives another loss there.

Each returns how far, relative to the loss, the technique's is from the model's own, and how far it
may be. Nothing of Stepbench computes here; only the model, its data and its loss are the same.
"""

import torch
from torch.utils.data import default_collate

from tests.models import language

ALLOWED = 1e-3  # what accumulation and data parallelism may


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


EXPLAINED = {
    ("two views, batch not said", technique): redundancy_in_halves
    for technique in ("accum2", "ddp", "zero2", "fsdp2")
}

"""Global batches: what the loader yields, and what can be observed of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
)

from stepbench.errors import StepbenchError
from stepbench.training.types import Plan, Workload

HostBatch = tuple[Any, Any]
# Samples whose bytes stand for the data of a workload that names no digest.
DIGESTED_SAMPLES = 8


class Batches:
    """Global batches on the host, for ever: an iterator of (inputs, targets).

    Their order is a function of (seed, epoch) only, never of who loads them. `part` (index, of how
    many) leaves the same share of each of them: a rank's. `left_out` are batches that are never
    loaded, by their index in that order, counted through the epochs.

    Attributes:
        dataset: what the batches are made of.
        made_by: what makes them in this process where no worker does.
        epoch: number of the epoch that the last batch came from.
        index: of the last batch, counted through the epochs.
        drawn: batches whose samples were handed out to be loaded.
        received: batches that arrived.
        most_ahead: the largest number of batches that were under way when one had arrived.
        epoch_batches: batches in one epoch.
        loaded_by: process that loaded the last batch.
    """

    def __init__(
        self,
        workload: Workload,
        plan: Plan,
        *,
        part: tuple[int, int] = (0, 1),
        batches_an_epoch: int | None = None,
        left_out: range = range(0),
    ):
        self.left_out, self.index = left_out, -1
        self.epoch = self.drawn = self.received = self.most_ahead = 0
        self.loaded_by = os.getpid()
        self.dataset = dataset = _dataset(workload, batches_an_epoch)
        self.made_by = (dataset, workload.collate)
        # torch's own sampler that knows epochs; one replica is the whole data.
        self._sampler: DistributedSampler[Any] = DistributedSampler(
            dataset, num_replicas=1, rank=0, seed=workload.seed, drop_last=True
        )
        batch_sampler = BatchSampler(self._sampler, workload.global_batch, drop_last=True)
        self.epoch_batches = len(batch_sampler)
        self._loader: DataLoader[Any] = DataLoader(
            _AtEpoch(dataset),
            batch_sampler=_Counted(batch_sampler, part, self._draw, self._kept),
            collate_fn=_Signed(workload.collate),
            **plan.loader,
        )
        self._batches = self._forever()

    def __iter__(self) -> Iterator[HostBatch]:
        return self

    def __next__(self) -> HostBatch:
        return next(self._batches)

    def _draw(self) -> int:
        self.drawn += 1
        return self.epoch

    def _kept(self, place: int) -> bool:
        """Whether the batch at that place of this epoch is loaded."""
        return self.epoch * self.epoch_batches + place not in self.left_out

    def _forever(self) -> Iterator[HostBatch]:
        for self.epoch in count():
            if not any(map(self._kept, range(self.epoch_batches))):
                continue  # the loader is not asked: it would start its workers
            self._sampler.set_epoch(self.epoch)
            places = filter(self._kept, range(self.epoch_batches))
            # The loader comes first: asked for one more, it ends its workers.
            for (batch, loaded_by), place in zip(self._loader, places, strict=False):
                self.index = self.epoch * self.epoch_batches + place
                self.loaded_by = loaded_by
                self.received += 1
                self.most_ahead = max(self.most_ahead, self.drawn - self.received)
                yield as_pair(batch)


def as_pair(batch: Any) -> HostBatch:
    """(inputs, targets) of what was collated; of one thing, that twice."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, batch


class _Counted:
    """Part of a batch sampler that tells each draw, and learns the epoch that it belongs to.

    `kept` says of each place in the epoch whether its batch is wanted.
    """

    def __init__(
        self,
        batches: BatchSampler,
        part: tuple[int, int],
        draw: Callable[[], int],
        kept: Callable[[int], bool],
    ) -> None:
        self.batches, self.draw, self.kept = batches, draw, kept
        self.part, self.parts = part

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for place, indices in enumerate(self.batches):
            if not self.kept(place):
                continue
            size = len(indices) // self.parts
            epoch = self.draw()
            mine = indices[self.part * size : (self.part + 1) * size]
            yield [(epoch, index) for index in mine]

    def __len__(self) -> int:
        return len(self.batches)


class _AtEpoch(Dataset[Any]):
    """Takes (epoch, index): a worker that lives on would never see an epoch set in this process."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, at: tuple[int, int]) -> Any:
        epoch, index = at
        if hasattr(self.dataset, "epoch"):
            self.dataset.epoch = epoch
        return self.dataset[index]


class _Signed:
    """Collates, and signs with the process that did."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> tuple[Any, int]:
        return self.collate(samples), os.getpid()


def data_digest(workload: Workload) -> str:
    """What identifies the data: the workload's own word, or a digest of its first samples."""
    if workload.data_digest is not None:
        return workload.data_digest()
    dataset = workload.dataset()
    digest = hashlib.sha256(str(_size(dataset)).encode())
    for index in range(min(DIGESTED_SAMPLES, _size(dataset))):
        for leaf in tree_leaves(dataset[index]):
            digest.update(
                leaf.numpy().tobytes() if isinstance(leaf, Tensor) else repr(leaf).encode()
            )
    return f"first samples sha256 {digest.hexdigest()[:16]}"


def _size(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]


def _dataset(workload: Workload, batches_an_epoch: int | None) -> Any:
    dataset = workload.dataset()
    if _size(dataset) < workload.global_batch:
        raise StepbenchError(
            f"{workload.name}: the data hold {_size(dataset)} samples, fewer than a global batch "
            f"of {workload.global_batch}; lower the batch; weak scaling grows it with the ranks"
        )
    if batches_an_epoch is None:
        return dataset
    samples = min(_size(dataset), batches_an_epoch * workload.global_batch)
    return Subset(dataset, range(samples))

"""The timed steps once more, in a fresh process that times nothing: do they give the same losses?

A model or a technique may know that it is being timed, or count until it is. What it cannot do is
give the same losses for less work. So this process first calls the model, untrained and put back,
as often as the other one did in all; it reads every batch beside the loader, too; and two steps
without an update tell at the end whether the model draws random numbers.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler

from stepbench.measuring.probes import memory
from stepbench.measuring.probes.parity import Parity
from stepbench.measuring.probes.timed import Timed
from stepbench.measuring.ranks import Place
from stepbench.measuring.settings import Settings
from stepbench.measuring.subject import Subject, with_subject
from stepbench.measuring.window_plan import WindowPlan
from stepbench.records.evidence import Evidence, Repetition
from stepbench.stats.measures import relative_difference
from stepbench.training.data import HostBatch, as_pair
from stepbench.training.step import train_step
from stepbench.training.types import Workload

# Equal programs are bit-equal on a CPU, but for sums that several threads share. On a GPU they
# begin apart by rounding, which some twenty updates make larger.
SAME = {"cpu": 1e-4, "cuda": 1e-2}
# Two steps that differ by more than rounding have drawn.
DRAWN = {"cpu": 1e-6, "cuda": 1e-3}


def repeat_case(
    case_json: dict[str, Any],
    settings: Settings,
    plan: WindowPlan,
    device_type: str,
    place_json: dict[str, Any],
    repeated: Evidence,
) -> dict[str, Any]:
    """Run the steps of another process of the case again in this one, which must be fresh.

    Returns:
        `{"repetition": …}`, or `{"outcome": …}` where something forbids it.
    """

    def work(subject: _Repeating) -> dict[str, Any]:
        return {"repetition": subject.repeat(plan, repeated.begins, len(repeated.losses)).to_json()}

    place = Place.from_json(place_json)
    return with_subject(_Repeating, case_json, device_type, work, settings, place)


def merged(each: Sequence[Repetition]) -> Repetition:
    """One of those of all ranks, as `Evidence` is one of theirs."""
    return Repetition(
        losses=tuple(map(statistics.fmean, zip(*(one.losses for one in each), strict=True))),
        parameter_norm=each[0].parameter_norm,
        wrong_batch=next((one.wrong_batch for one in each if one.wrong_batch), None),
        randomness=max(one.randomness for one in each),
    )


def objection(evidence: Evidence, again: Repetition, device: str) -> str | None:
    """Why the timed steps were not the case's own, or None."""
    if again.wrong_batch:
        return again.wrong_batch
    difference = relative_difference(
        (*evidence.losses, evidence.parameter_norm), (*again.losses, again.parameter_norm)
    )
    if difference <= SAME[device]:
        return None
    return (
        f"the timed steps' losses differ by {difference:.1e} from those of the same steps untimed: "
        "a loss must depend on parameters, buffers, random state and batch only"
    )


class _Repeating(Subject):
    """A subject that steps as far as another one did, and times nothing."""

    def repeat(self, plan: WindowPlan, begins: int, steps: int) -> Repetition:
        """Run `steps` steps after the first `begins`."""
        probe = memory.memory_probe(self.device)
        self._build()
        self._open_data(plan)
        part = self.place.rank, self.site.replicas
        data = PlainData(self.workload, self.batches.dataset, part=part)
        if not self.site.plan.shards:  # what is sharded cannot be put back by copies
            with _put_back(self.loop.model):
                host = data.batch(0)
                for _ in range(begins + steps):
                    self._call(host)
        self._parity(probe)
        while self.steps_run < begins:
            self._step()
        timed, wrong = Timed(self.loop, begins=begins), None
        for step in range(1, steps + 1):
            host, at = self._next(), self.batches.index
            if not wrong and not data.holds(at, host):
                wrong = f"timed step {step} trained another batch than the data's number {at + 1}"
            train_step(timed.loop, host, self.site)
        evidence = timed.evidence()
        randomness = self._randomness()
        self.group.worst(0.0)  # none leaves while another still needs it
        return Repetition(
            losses=evidence.losses,
            parameter_norm=evidence.parameter_norm,
            wrong_batch=wrong,
            randomness=randomness,
        )

    def _randomness(self) -> float:
        """How far loss and gradient norm of two steps without an update are apart."""
        loop = dataclasses.replace(self.loop, update=self.loop.optimizer.zero_grad)
        twice = Parity()
        for _ in range(2):
            twice.observe(loop, self.first, self.site)
        figures = zip(*zip(twice.losses, twice.grad_norms, strict=True), strict=True)
        return max(relative_difference([one], [other]) for one, other in figures)

    def _call(self, host: HostBatch) -> None:
        """The forward passes of a step; eager, whatever is compiled.

        As if each had another micro-batch behind it: ranks do not wait for its gradients.
        """
        loop = dataclasses.replace(
            self.loop,
            backward=lambda loss: None,
            update=lambda: None,
            around=tuple(partial(_never_last, around) for around in self.loop.around),
        )
        with torch.compiler.set_stance("force_eager"):
            train_step(loop, host, self.site)


class PlainData:
    """Global batches as (seed, epoch, index) say, read without a loader; a rank's part of them."""

    def __init__(self, workload: Workload, dataset: Any, *, part: tuple[int, int]) -> None:
        self._workload, self._dataset = workload, dataset
        self._part, self._parts = part
        self._sampler: DistributedSampler[Any] = DistributedSampler(
            self._dataset, num_replicas=1, rank=0, seed=workload.seed, drop_last=True
        )

    def batch(self, number: int) -> HostBatch:
        """The batch of that number, counted from 0 over all epochs."""
        whole = self._workload.global_batch
        epoch, at = divmod(number, len(self._sampler) // whole)
        self._sampler.set_epoch(epoch)
        size = whole // self._parts
        first = at * whole + self._part * size
        if hasattr(self._dataset, "epoch"):
            self._dataset.epoch = epoch
        samples = [self._dataset[index] for index in [*self._sampler][first : first + size]]
        batch = self._workload.collate(samples)
        return as_pair(batch)

    def holds(self, number: int, batch: HostBatch) -> bool:
        """Whether a batch is that one; of data that change whenever they are read, every one is."""
        with _random_state_kept():
            return _same(batch, self.batch(number)) or not _same(
                self.batch(number), self.batch(number)
            )


def _never_last(
    around: Callable[[bool], AbstractContextManager[Any]], last: bool
) -> AbstractContextManager[Any]:
    return around(False)


def _same(one: HostBatch, other: HostBatch) -> bool:
    leaves = tree_leaves(one), tree_leaves(other)
    return len(leaves[0]) == len(leaves[1]) and all(map(_equal, *leaves))


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Leave parameters, buffers and random state as they were."""
    held = [
        (tensors, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
    with _random_state_kept():
        yield
    with torch.no_grad():
        for tensors, name, tensor, value in held:
            tensor.copy_(value)
            tensors[name] = tensor  # type: ignore[assignment]


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave the random state of torch, Python and NumPy as it was."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)

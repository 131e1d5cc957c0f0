"""The types that a technique and a workload are written in.

A technique says what it changes of five things, each left as it is by default: the plan (data about
the loop), the model, the loss where it is not the model's own, the optimizer's constructor, and the
built loop. `build` runs all plans, then all models, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, default_collate

from stepbench.records.case import Case
from stepbench.records.measurement import Counters

MakeOptimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
Loss = Callable[[Any, Any], Tensor]  # (output, targets) -> scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The loop's intent, as data.

    Attributes:
        micro_batches: parts that the global batch is split into, one backward pass each.
        autocast: type that autocast computes in; None turns autocast off.
        scale_loss: scale the loss with `torch.amp.GradScaler`.
        max_grad_norm: clip the unscaled gradient norm to this; None does not clip.
        distributed: every rank is a process of one group, and takes its part of the global batch.
        shards: the whole model never enters the device: it is the model hook that moves it.
        offloads: gradients are reduced on the device and then live on the host.
        threads: that a rank's operators run on, on a CPU; None: as many as the run says.
        loader: arguments of torch's DataLoader that differ from its defaults.
    """

    micro_batches: int = 1
    autocast: torch.dtype | None = None
    scale_loss: bool = False
    max_grad_norm: float | None = None
    distributed: bool = False
    shards: bool = False
    offloads: bool = False
    threads: int | None = None
    loader: Mapping[str, Any] = field(default_factory=dict)


def _adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-4, fused=True)


def _first_dimension(targets: Any) -> int:
    return len(tree_leaves(targets)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model, its data, its loss and a fixed global batch: constructors, not instances.

    Attributes:
        model: draws a new model on the CPU from torch's global generator.
        dataset: a map-style dataset; a sample is (inputs, targets), or one thing that is both. It
            must be a function of the index only, or of `epoch` too, an attribute set before each
            epoch if the dataset has it.
        loss: (output, targets) -> scalar mean over the loss terms; None: the output is that.
        global_batch: samples in one optimizer step.
        call: how the model is given inputs; `lambda model, batch: model(**batch)` for a dictionary.
        loss_terms: how many terms the mean is over (tokens, images), from the targets; the length
            of the batch unless said otherwise. Micro-batches are weighed by it.
        uneven_terms: whether equally many samples can hold unequally many loss terms (padding):
            ranks then agree on the total before each step.
        blocks: the model's repeated blocks, in forward order; empty if it has none.
        optimizer: the baseline optimizer's constructor, from the parameters that are trained; or
            from the model, where its first parameter is called `model`: groups by name are made so.
        collate: makes a batch of samples; torch's own unless said otherwise.
        batch_dependent: whether a sample's output depends on the batch it is in (BatchNorm, or
            dropout, which draws anew): micro-batches then are other mathematics than the whole.
            None: whether the model has such modules; functional dropout cannot be seen.
        optimizer_kind: class name of what `optimizer` makes: AdamW's other implementations are the
            same mathematics only beside AdamW. None: found out where one is made.
        seed: of weights, data order and dropout.
        name: canonical spelling, parameters that differ from the default included; filled in for
            a workload of your own.
        data_digest: identifies the data, a key of comparison; None: made from the first samples.

    Examples:
        A classifier, whose loss is a mean over images. Anything with a length and an index is a
        dataset, a list or a tensor too; it has to be the same in every process.

        >>> import torch
        >>> from torch import nn
        >>> from torch.nn import functional
        >>> def classifier():
        ...     return Workload(
        ...         model=lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64)),
        ...         dataset=lambda: list(zip(torch.eye(64), range(64))),
        ...         loss=functional.cross_entropy,
        ...         global_batch=8,
        ...     )

        A causal language model of Hugging Face's. It shifts the labels itself and returns the loss:
        of each sequence all words but the first are predicted.

        >>> def gpt2():
        ...     from transformers import GPT2Config, GPT2LMHeadModel
        ...
        ...     sizes = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, use_cache=False)
        ...     return Workload(
        ...         model=lambda: GPT2LMHeadModel(sizes),
        ...         dataset=lambda: torch.arange(64 * 16).view(64, 16) % 64,
        ...         call=lambda model, words: model(input_ids=words, labels=words).loss,
        ...         loss=None,
        ...         loss_terms=lambda words: words[:, 1:].numel(),
        ...         blocks=lambda model: list(model.transformer.h),
        ...         global_batch=8,
        ...     )

        Encoder and decoder: samples are dictionaries, and blocks are of both. Where padding is left
        out of the loss, `loss_terms` counts the rest, and `uneven_terms=True` says so.

        >>> def t5():
        ...     from transformers import T5Config, T5ForConditionalGeneration
        ...
        ...     sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        ...     config = T5Config(
        ...         vocab_size=64, decoder_start_token_id=0, use_cache=False, **sizes
        ...     )
        ...     words = torch.arange(64 * 16).view(64, 16) % 64
        ...     return Workload(
        ...         model=lambda: T5ForConditionalGeneration(config),
        ...         dataset=lambda: [{"input_ids": one, "labels": one.flip(0)} for one in words],
        ...         call=lambda model, batch: model(**batch).loss,
        ...         loss=None,
        ...         loss_terms=lambda batch: int((batch["labels"] != -100).sum()),
        ...         blocks=lambda model: [*model.encoder.block, *model.decoder.block],
        ...         global_batch=8,
        ...     )

        Two towers with a contrastive loss: each pair is told from all others of its batch, so that
        the parts of a batch do not add up to the whole.

        >>> class Towers(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.left, self.right = nn.Linear(64, 32), nn.Linear(64, 32)
        ...
        ...     def forward(self, pair):
        ...         return self.left(pair[0]) @ self.right(pair[1]).T
        >>> def contrastive():
        ...     return Workload(
        ...         model=Towers,
        ...         dataset=lambda: [((one, one.flip(0)), 0) for one in torch.eye(64)],
        ...         loss=lambda scores, _: functional.cross_entropy(
        ...             scores, torch.arange(len(scores), device=scores.device)
        ...         ),
        ...         batch_dependent=True,
        ...         global_batch=8,
        ...     )
    """

    model: Callable[[], nn.Module]
    dataset: Callable[[], Dataset[Any]]
    loss: Loss | None
    global_batch: int
    call: Callable[[nn.Module, Any], Any] = lambda model, inputs: model(inputs)
    loss_terms: Callable[[Any], int] = _first_dimension
    uneven_terms: bool = False
    blocks: Callable[[nn.Module], list[nn.Module]] = lambda model: []
    optimizer: Callable[[Any], torch.optim.Optimizer] = _adamw
    collate: Callable[[list[Any]], Any] = default_collate
    batch_dependent: bool | None = None
    optimizer_kind: str | None = None
    seed: int = 0
    name: str = ""
    data_digest: Callable[[], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a case is built: what is trained, by which plan, on which device and rank.

    `ranks` are the case's; the global batch is split over `replicas` processes, and `mesh` is
    theirs where the plan is distributed.
    """

    workload: Workload
    plan: Plan
    device: torch.device
    ranks: int = 1
    rank: int = 0
    mesh: DeviceMesh | None = None

    @property
    def replicas(self) -> int:
        """Processes that the global batch is split over."""
        return self.ranks if self.plan.distributed else 1

    @property
    def replica_batch(self) -> int:
        """Samples of a global batch that this process takes."""
        return self.workload.global_batch // self.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch on the device.

    `share` is its part of the loss terms that its replica would hold if all held equally many: the
    mean over replicas of what they add up to is then the global batch's loss.
    """

    inputs: Any
    targets: Any
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The built step. Probes wrap its functions.

    Attributes:
        model: what forward calls: the workload's model, or what data parallelism wrapped it in.
        forward: the micro-batch's loss times its share.
        backward: accumulates the gradients of one loss.
        update: one optimizer update from the accumulated gradients, then clears them.
        loss_scale: the factor that the gradients carry now; falls when a step was skipped.
            Waits for the device.
        around: contexts entered around each micro-batch; True for the step's last one.
        blocks: the model's repeated blocks, in forward order.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    forward: Callable[[Batch], Tensor]
    backward: Callable[[Tensor], None]
    update: Callable[[], None]
    loss_scale: Callable[[], float]
    around: tuple[Callable[[bool], AbstractContextManager[Any]], ...] = ()
    blocks: list[nn.Module] = field(default_factory=list)


class Unsupported(Exception):
    """A technique found, in building or running, that it cannot apply to this model; why."""


def as_it_is(counters: Counters, plan: Plan) -> None:
    """The proof of a baseline that leaves it to workload and torch: there is nothing to see."""


def _runs_anywhere(case: Case, machine: Mapping[str, Any]) -> str | None:
    return None


def _fits_any(workload: Workload, case: Case) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """One named setting on one axis.

    Attributes:
        about: one line for `stepbench list`.
        proof: why the technique was *not* active, from what was observed; None if it was. Raises
            Unsupported where the model had nothing that it could have acted on.
        unsupported: why this machine cannot run it; decided before anything starts.
        incompatible: why this workload's batch, or this number of ranks, cannot be trained so: a
            mistake where a person named it, `unsupported` inside a product. Techniques that do not
            go together stand in the table of `training/incompatible.py` instead.
        also: other names by which people know it; accepted, and spelled by `name`.
        note: what every row of it is to say beside its outcome.
        imports: modules that its hooks import, of libraries that are extras of this one under
            their own names (`stepbench[peft]`).
        leaves_tensors: whether parameters that the baseline trains may stay as they were.
        tolerance: largest relative difference of loss and gradient norm from the baseline that is
            still the same mathematics; None: other mathematics, reported without judging.
    """

    name: str
    about: str
    also: tuple[str, ...] = ()
    note: str | None = None
    imports: tuple[str, ...] = ()
    proof: Callable[[Counters, Plan], str | None]
    plan: Callable[[Plan], Plan] = lambda plan: plan
    model: Callable[[nn.Module, Site], nn.Module] = lambda model, site: model
    loss: Callable[[Loss, Site], Loss] = lambda loss, site: loss
    optimizer: Callable[[MakeOptimizer, Site], MakeOptimizer] = lambda make, site: make
    loop: Callable[[Loop, Site], Loop] = lambda loop, site: loop
    unsupported: Callable[[Case, Mapping[str, Any]], str | None] = _runs_anywhere
    incompatible: Callable[[Workload, Case], str | None] = _fits_any
    leaves_tensors: bool = False
    tolerance: Callable[[Workload], float | None] = lambda workload: 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One dimension of choice.

    Attributes:
        families: makers of numbered techniques (`accum4`) by their word, from the number.
        examples: the names that stand for the axis where a person names only the axis.
        inside: whether its techniques act inside the model's forward and backward, which
            compilation rewrites: what a compiled step does of them is not seen.
    """

    name: str
    baseline: str
    examples: tuple[str, ...]
    techniques: tuple[Technique, ...]
    families: Mapping[str, Callable[[int], Technique]] = field(default_factory=dict)
    inside: bool = False

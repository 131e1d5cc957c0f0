"""The table of sabotages: whatever makes a number wrong, none of it is `ok`.

Each is planted underneath, in every process of a case or in those that its `when` names. Timed
steps are told by what an insider knows: garbage collection is held back in them.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from stepbench.training import build as build_module
from stepbench.training import data
from stepbench.training import step as step_module
from stepbench.training.data import Batches
from stepbench.training.techniques import attention, checkpointing, compiling
from stepbench.training.types import Loop, Site
from stepbench.training.workloads import gpt

Plant = Callable[[pytest.MonkeyPatch], None]
DROPOUT = "gpt-tiny@dropout=0.2"


@dataclass(frozen=True)
class Sabotage:
    """`plant` under `combination`; the outcome's reason must hold `told`."""

    name: str
    combination: str
    plant: Plant
    told: str
    workload: str = "gpt-tiny"
    kind: str = "invalid"


def timed() -> bool:
    """Whether this is a timed step."""
    return not gc.isenabled()


def everywhere(site: Site) -> bool:
    return True


def in_16_bits(site: Site) -> bool:
    return site.plan.autocast is not None


def accumulating(site: Site) -> bool:
    return site.plan.micro_batches > 1


def loop(edit: Callable[[Loop], Loop], when: Callable[[Site], bool] = everywhere) -> Plant:
    """Edit the built loop."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = build_module.plain_loop

        def edited(model: Any, optimizer: Any, site: Site) -> Loop:
            plain = real(model, optimizer, site)
            return edit(plain) if when(site) else plain

        monkeypatch.setattr(build_module, "plain_loop", edited)

    return plant


def after_update(do: Callable[[Loop, int], None]) -> Callable[[Loop], Loop]:
    """Have `do(loop, number of the update)` follow each update."""

    def edit(of: Loop) -> Loop:
        numbers = count(1)

        def update() -> None:
            of.update()
            do(of, next(numbers))

        return replace(of, update=update)

    return edit


@torch.no_grad()
def spoil(of: Loop) -> None:
    for parameter in of.model.parameters():
        parameter.fill_(math.nan)


def one_sample(batch: Any, fewer: bool) -> Any:
    if not fewer:
        return batch
    return replace(batch, inputs=batch.inputs[:1], targets=batch.targets[:1])


def fewer_samples(fewer: Callable[[int], bool]) -> Callable[[Loop], Loop]:
    """Train one sample of the batch where `fewer(number of the call)` says so."""

    def edit(of: Loop) -> Loop:
        numbers = count(1)
        return replace(
            of, forward=lambda batch: of.forward(one_sample(batch, fewer(next(numbers))))
        )

    return edit


def half_a_sequence(of: Loop) -> Loop:
    def forward(batch: Any) -> torch.Tensor:
        if timed():
            batch = replace(batch, inputs=batch.inputs[:, :8], targets=batch.targets[:, :8])
        return of.forward(batch)

    return replace(of, forward=forward)


def without_update_when(skipped: Callable[[int], bool]) -> Callable[[Loop], Loop]:
    def edit(of: Loop) -> Loop:
        numbers = count(1)
        return replace(
            of,
            update=lambda: of.optimizer.zero_grad() if skipped(next(numbers)) else of.update(),
        )

    return edit


def at_no_rate(of: Loop) -> Loop:
    def update() -> None:
        rates = [group["lr"] for group in of.optimizer.param_groups]
        for group in of.optimizer.param_groups:
            group["lr"] = 0.0 if timed() else group["lr"]
        of.update()
        for group, rate in zip(of.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    return replace(of, update=update)


def without_gradients_of_block_0(when: Callable[[], bool]) -> Callable[[Loop], Loop]:
    def edit(of: Loop) -> Loop:
        def update() -> None:
            for parameter in of.model.blocks[0].parameters():
                parameter.grad = None if when() else parameter.grad
            of.update()

        return replace(of, update=update)

    return edit


def frozen_block_0(of: Loop) -> Loop:
    of.model.blocks[0].requires_grad_(False)
    return of


def block_0_left_to_nobody(of: Loop) -> Loop:
    left = set(of.model.blocks[0].parameters())
    for group in of.optimizer.param_groups:
        group["params"] = [one for one in group["params"] if one not in left]
    return of


def block_0_put_back(of: Loop) -> Loop:
    held = [(one, one.detach().clone()) for one in of.model.blocks[0].parameters()]

    @torch.no_grad()
    def put_back(of: Loop, number: int) -> None:
        for parameter, value in held:
            parameter.copy_(value)

    return after_update(put_back)(of)


def in_eval_mode(of: Loop) -> Loop:
    of.model.eval()
    return of


def evaluating_inside(of: Loop) -> Loop:
    def forward(batch: Any) -> torch.Tensor:
        of.model.eval()
        loss = of.forward(batch)
        of.model.train()
        return loss

    return replace(of, forward=forward)


def evaluating_a_block(of: Loop) -> Loop:
    of.model.blocks[1].eval()
    return of


def evaluating_when_timed(of: Loop) -> Loop:
    def forward(batch: Any) -> torch.Tensor:
        of.model.train(not timed())
        return of.forward(batch)

    return replace(of, forward=forward)


def in_32_bits(names: Callable[[str], bool]) -> Callable[[Loop], Loop]:
    """Take the modules whose names fit out of autocast."""

    def edit(of: Loop) -> Loop:
        for name, module in of.model.named_modules():
            if names(name):
                module.forward = torch.autocast("cpu", enabled=False)(
                    lambda hidden, real=module.forward: real(hidden.float())
                )
        return of

    return edit


def attention_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every second layer."""
    real, layers = gpt.functional.scaled_dot_product_attention, count()

    def by_hand(query: Any, key: Any, value: Any, **options: Any) -> torch.Tensor:
        if next(layers) % 2:
            return real(query, key, value, **options)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -math.inf).softmax(-1) @ value

    chosen = attention.sdpa_kernel

    @contextmanager
    def kernel(which: Any) -> Any:
        with chosen(which), pytest.MonkeyPatch.context() as inside:
            inside.setattr(gpt.functional, "scaled_dot_product_attention", by_hand)
            yield

    monkeypatch.setattr(attention, "sdpa_kernel", kernel)


def excluded(fits: Callable[[str, nn.Module], bool]) -> Plant:
    """Compile, without the modules that fit."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
        real = nn.Module.compile

        def compile_(self: nn.Module, **options: Any) -> None:
            for name, module in self.named_modules():
                if fits(name, module):
                    module.forward = torch.compiler.disable(module.forward)
            real(self, **options)

        monkeypatch.setattr(nn.Module, "compile", compile_)

    return plant


def indices(edit: Callable[[int, list[Any], list[Any]], list[Any]]) -> Plant:
    """Hand `edit(number, batch, the first batch)` out to be loaded."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = data._Counted.__iter__

        def edited(self: Any) -> Any:
            first = None
            for number, batch in enumerate(real(self), start=1):
                first = first or batch
                yield edit(number, batch, first)

        monkeypatch.setattr(data._Counted, "__iter__", edited)

    return plant


def micro_batches(edit: Callable[[list[Any]], list[Any]]) -> Plant:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = step_module.micro_batches
        monkeypatch.setattr(
            step_module, "micro_batches", lambda host, site: edit(list(real(host, site)))
        )

    return plant


def same_batch_when_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    real, held = Batches.__next__, []

    def again(self: Batches) -> Any:
        held.append(real(self))
        return held[0] if timed() else held[-1]

    monkeypatch.setattr(Batches, "__next__", again)


def checkpointed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of each pair of blocks."""
    real, calls = checkpointing.checkpoint, count()

    def sometimes(run: Any, *arguments: Any, **named: Any) -> Any:
        if next(calls) % 2:
            return real(run, *arguments, **named)
        return run(*arguments)

    monkeypatch.setattr(checkpointing, "checkpoint", sometimes)


def without_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpointing.checkpoint
    monkeypatch.setattr(
        checkpointing,
        "checkpoint",
        lambda run, *arguments, **named: real(run, *arguments, **named, preserve_rng_state=False),
    )


def updating_twice(of: Loop) -> Loop:
    def update() -> None:
        of.optimizer.step()
        of.update()

    return replace(of, update=update)


def backward_of(factor: float) -> Callable[[Loop], Loop]:
    return lambda of: replace(of, backward=lambda loss: of.backward(loss * factor))


def one_layers_gradient(of: Loop) -> Loop:
    of.model.blocks[0].feed_forward_in.weight.register_hook(lambda gradient: 3 * gradient)
    return of


TABLE = [
    # What happens in the timed steps only, or from some step on.
    Sabotage(
        "parameters are lost after parity",
        "baseline",
        loop(after_update(lambda of, number: spoil(of) if number == 9 else None)),
        "timed step 1 had loss nan",
    ),
    Sabotage(
        "parameters are lost in the timed steps",
        "baseline",
        loop(after_update(lambda of, number: spoil(of) if timed() else None)),
        "timed step 2 had loss nan",
    ),
    Sabotage(
        "the loss is not finite in the timed steps",
        "baseline",
        loop(
            lambda of: replace(
                of, forward=lambda batch: of.forward(batch) * (math.inf if timed() else 1.0)
            )
        ),
        "timed step 1 had loss inf",
    ),
    Sabotage(
        "one sample in the timed steps",
        "baseline",
        loop(fewer_samples(lambda number: timed())),
        "differ by",
    ),
    Sabotage(
        "one sample from step 7 on",
        "baseline",
        loop(fewer_samples(lambda number: number >= 7)),
        "differ by",
    ),
    Sabotage(
        "one sample in steps 6 to 20",
        "baseline",
        loop(fewer_samples(lambda number: 6 <= number <= 20)),
        "differ by",
    ),
    Sabotage(
        "one sample of a micro-batch in the timed steps",
        "accum2",
        loop(fewer_samples(lambda number: timed()), accumulating),
        "differ by",
    ),
    Sabotage("half of a sequence when timed", "baseline", loop(half_a_sequence), "differ by"),
    Sabotage(
        "no update in the timed steps",
        "baseline",
        loop(without_update_when(lambda number: timed())),
        "the timed steps changed no parameter",
    ),
    Sabotage(
        "every second update in the timed steps",
        "baseline",
        loop(without_update_when(lambda number: timed() and number % 2 == 0)),
        "differ by",
    ),
    Sabotage("no rate in the timed steps", "baseline", loop(at_no_rate), "changed no parameter"),
    Sabotage(
        "no backward pass in the timed steps",
        "baseline",
        loop(lambda of: replace(of, backward=lambda loss: None if timed() else of.backward(loss))),
        "the timed steps changed no parameter",
    ),
    Sabotage(
        "no gradient of block 0 in the timed steps",
        "accum2",
        loop(without_gradients_of_block_0(timed), accumulating),
        "differ by",
    ),
    Sabotage(
        "no dropout in the timed steps", "bf16", loop(evaluating_when_timed), "differ by", DROPOUT
    ),
    # What is loaded.
    Sabotage(
        "one batch again from step 7 on",
        "workers2",
        indices(lambda number, batch, first: first if number >= 7 else batch),
        "trained another batch",
    ),
    Sabotage(
        "one sample eight times from step 7 on",
        "baseline",
        indices(lambda number, batch, first: batch[:1] * len(batch) if number >= 7 else batch),
        "trained another batch",
    ),
    Sabotage("one batch again when timed", "baseline", same_batch_when_timed, "differ by"),
    Sabotage(
        "the next epoch's order",
        "baseline",
        indices(lambda number, batch, first: batch[::-1] if number >= 7 else batch),
        "trained another batch",
    ),
    # What is computed in which type, by which kernel, and compiled.
    Sabotage(
        "attention's projections in 32 bits",
        "bf16",
        loop(
            in_32_bits(lambda name: name.endswith(("query_key_value", "attention_out"))), in_16_bits
        ),
        "32-bit products that autocast computes in 16 bits: blocks.0.attention_out and 3 more",
    ),
    Sabotage(
        "one projection of one block in 32 bits",
        "bf16",
        loop(in_32_bits(lambda name: name == "blocks.1.attention_out"), in_16_bits),
        "32-bit products that autocast computes in 16 bits: blocks.1.attention_out",
    ),
    Sabotage(
        "the head in 32 bits",
        "fp16",
        loop(in_32_bits(lambda name: name == "head"), in_16_bits),
        "32-bit products that autocast computes in 16 bits: head",
    ),
    Sabotage(
        "attention by hand in every second layer",
        "sdpa-flash",
        attention_by_hand,
        "attention called torch's kernels 1 times in a step, not 2",
    ),
    Sabotage(
        "no linear layer compiled",
        "compile",
        excluded(lambda name, module: isinstance(module, nn.Linear)),
        "2 of 11 products ran in compiled graphs",
        kind="unsupported",
    ),
    Sabotage(
        "one block of two not compiled",
        "compile",
        excluded(lambda name, module: name == "blocks.1"),
        "kept from compilation, unlike in the baseline: blocks.1",
    ),
    Sabotage(
        "one layer of three not compiled",
        "compile",
        excluded(lambda name, module: name == "middle"),
        "kept from compilation, unlike in the baseline: middle",
        "tests.training.own_workloads:in_a_row",
    ),
    # What is trained.
    Sabotage(
        "block 0 frozen",
        "bf16",
        loop(frozen_block_0, in_16_bits),
        "not changed by the timed steps, unlike the reference's: blocks.0",
    ),
    Sabotage(
        "block 0 in no group",
        "bf16",
        loop(block_0_left_to_nobody, in_16_bits),
        "not changed by the timed steps, unlike the reference's: blocks.0",
    ),
    Sabotage(
        "block 0 put back after each update",
        "bf16",
        loop(block_0_put_back, in_16_bits),
        "not changed by the timed steps, unlike the reference's: blocks.0",
    ),
    Sabotage(
        "block 0 without gradients",
        "accum2",
        loop(without_gradients_of_block_0(lambda: True), accumulating),
        "the optimizer was given gradients of norm",
    ),
    Sabotage(
        "eval mode under bf16",
        "bf16",
        loop(in_eval_mode, in_16_bits),
        "in evaluation mode, unlike the reference: the model",
        DROPOUT,
    ),
    Sabotage(
        "eval mode under accumulation",
        "accum2",
        loop(in_eval_mode, accumulating),
        "in evaluation mode, unlike the reference: the model",
        DROPOUT,
    ),
    Sabotage(
        "eval mode in forward passes",
        "accum2",
        loop(evaluating_inside, accumulating),
        "in evaluation mode, unlike the reference: the model",
        DROPOUT,
    ),
    Sabotage(
        "a block in eval mode",
        "bf16",
        loop(evaluating_a_block, in_16_bits),
        "in evaluation mode, unlike the reference: blocks.1 and 6 more",
        DROPOUT,
    ),
    # What a step adds up to.
    Sabotage(
        "the first micro-batch twice",
        "accum2",
        micro_batches(lambda parts: [(parts[0][0], last) for _, last in parts]),
        "differs from the baseline's",
    ),
    Sabotage(
        "the last micro-batch alone",
        "accum2",
        micro_batches(lambda parts: parts[-1:]),
        "accum2 was not active",
    ),
    Sabotage(
        "two updates a step",
        "bf16",
        loop(updating_twice, in_16_bits),
        "differs from the baseline's",
    ),
    Sabotage(
        "gradients of half the size",
        "accum2",
        loop(backward_of(0.5), accumulating),
        "differs from the baseline's",
    ),
    Sabotage(
        "one layer's gradient three times as large",
        "accum2",
        loop(one_layers_gradient, accumulating),
        "differs from the baseline's",
    ),
    Sabotage(
        "every second block recomputed",
        "ckpt1",
        checkpointed_once,
        "ckpt1 was not active",
    ),
    Sabotage(
        "other dropout when recomputed",
        "ckpt1",
        without_random_state,
        "differs from the baseline's",
        DROPOUT,
    ),
]


@pytest.mark.parametrize("sabotage", TABLE, ids=lambda one: one.name)
def test_no_sabotage_is_ok(measured, monkeypatch, sabotage):
    sabotage.plant(monkeypatch)
    outcome = measured(sabotage.combination, sabotage.workload).outcome
    assert outcome.kind == sabotage.kind, outcome
    assert sabotage.told in outcome.reason


@pytest.mark.parametrize("name", ["baseline", "bf16", "ckpt1", "accum2"])
def test_a_model_that_draws_is_no_sabotage(measured, name):
    outcome = measured(name, "tests.training.own_workloads:stochastic_depth").outcome
    assert outcome.ok, outcome
    # Micro-batches draw anew; nobody had to say so.
    assert name != "accum2" or outcome.reason.startswith("loss not judged")

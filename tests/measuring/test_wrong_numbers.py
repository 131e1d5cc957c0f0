"""A number that would be wrong is `invalid`: each fault is planted underneath, in every worker."""

import math
from dataclasses import replace

import pytest
import torch

from stepbench.measuring import subject
from stepbench.measuring.settings import Settings
from stepbench.training import build as build_module
from stepbench.training import step as step_module
from stepbench.training.techniques import checkpointing


def broken(record, kind="invalid"):
    assert record.outcome.kind == kind, record.outcome
    assert "\n" not in record.outcome.reason
    return record.outcome.reason


def test_removing_the_division_by_n(measured, monkeypatch):
    real = step_module.micro_batches
    monkeypatch.setattr(
        step_module,
        "micro_batches",
        lambda host, site: ((replace(batch, share=1.0), last) for batch, last in real(host, site)),
    )
    assert "shares of the loss sum to 4, not to 1" in broken(measured("accum4"))


def test_a_gradient_that_is_n_times_as_large(measured, monkeypatch):
    real = build_module.plain_loop

    def undivided(*arguments):
        loop = real(*arguments)
        return replace(loop, forward=lambda batch: loop.forward(batch) / batch.share)

    monkeypatch.setattr(build_module, "plain_loop", undivided)
    assert "differs from the baseline's by 3.0e+00" in broken(measured("accum4"))


def test_removing_the_division_where_micro_batches_are_other_mathematics(measured, monkeypatch):
    real = step_module.micro_batches
    monkeypatch.setattr(
        step_module,
        "micro_batches",
        lambda host, site: ((replace(batch, share=1.0), last) for batch, last in real(host, site)),
    )
    assert "shares of the loss sum to 4" in broken(measured("accum4", "cnn-tiny"))


def test_an_update_that_changes_nothing(measured, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    assert "changed no parameter" in broken(measured("baseline"))


def test_removing_an_accumulated_micro_batch(measured, monkeypatch):
    real = step_module.micro_batches
    monkeypatch.setattr(
        step_module, "micro_batches", lambda host, site: list(real(host, site))[-1:]
    )
    assert "accum4 was not active: a step ran 1 micro-batches" in broken(measured("accum4"))


@pytest.mark.parametrize("name", ["ckpt1", "ckpt2", "ckpt-sqrt", "ckpt-selective"])
def test_replacing_the_recomputation_by_the_identity(measured, monkeypatch, name):
    monkeypatch.setattr(
        checkpointing,
        "checkpoint",
        lambda run, *arguments, use_reentrant, context_fn=None, **named: run(*arguments, **named),
    )
    assert f"{name} was not active: backward recomputed blocks []" in broken(measured(name))


def test_selective_checkpointing_that_recomputes_everything(measured, monkeypatch):
    real = checkpointing.checkpoint
    monkeypatch.setattr(
        checkpointing,
        "checkpoint",
        lambda run, *arguments, use_reentrant, context_fn: real(
            run, *arguments, use_reentrant=False
        ),
    )
    assert "kept matrix products were computed again" in broken(measured("ckpt-selective"))


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp16-unscaled"])
def test_autocast_off_underneath(measured, monkeypatch, name):
    real = torch.autocast

    class Off(real):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named | {"enabled": False})

    monkeypatch.setattr(torch, "autocast", Off)
    assert f"{name} was not active: only 0% of the matrix products" in broken(measured(name))


def test_a_baseline_that_is_not_float32(measured, monkeypatch):
    real = torch.autocast

    class On(real):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named | {"enabled": True, "dtype": torch.bfloat16})

    monkeypatch.setattr(torch, "autocast", On)
    assert "fp32 was not active" in broken(measured("baseline"))


def test_a_scaler_that_never_scales(measured, monkeypatch):
    real = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: real(device, 1.0, enabled=enabled)
    )
    assert "fp16 was not active: the loss went backward at scale 1" in broken(measured("fp16"))


def test_a_scaler_where_there_should_be_none(measured, monkeypatch):
    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: real(device, enabled=True))
    told = broken(measured("fp16-unscaled"), kind="failed")
    assert "its baseline gave no number" in told
    assert "fp32 was not active: the loss went backward at scale 65536" in told


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(measured, monkeypatch, value):
    real = build_module.plain_loop

    def sick(*arguments):
        loop = real(*arguments)
        return replace(loop, forward=lambda batch: loop.forward(batch) * value)

    monkeypatch.setattr(build_module, "plain_loop", sick)
    reason = broken(measured("baseline"))
    assert reason.startswith("step 1 had loss")


def test_a_scaler_that_skips_every_step(measured, monkeypatch):
    real = build_module.plain_loop

    def overflowing(*arguments):
        loop = real(*arguments)
        scaled = arguments[2].plan.scale_loss
        factor = math.inf if scaled else 1.0
        return replace(loop, forward=lambda batch: loop.forward(batch) * factor)

    monkeypatch.setattr(build_module, "plain_loop", overflowing)
    assert "step 1 had loss nan" in broken(measured("fp16"))


def test_a_scaler_that_skips_timed_steps(measured, monkeypatch):
    real = build_module.plain_loop

    def overflowing_later(*arguments):
        loop = real(*arguments)
        if not arguments[2].plan.scale_loss:
            return loop
        calls = iter(range(10**6))
        # Parity and warm-up are at most 15 steps; then every third step overflows.
        late = lambda: (n := next(calls)) > 14 and n % 3 == 0  # noqa: E731
        return replace(
            loop, forward=lambda batch: loop.forward(batch) * (math.inf if late() else 1.0)
        )

    monkeypatch.setattr(build_module, "plain_loop", overflowing_later)
    record = measured(
        "fp16", settings=Settings(rounds=1, extra_rounds=0, max_steps=20, min_steps=20)
    )
    assert "the loss scaler skipped a timed step 3 times" in broken(record)


def test_other_weights_than_the_baselines(measured, monkeypatch):
    real = subject.build

    def reseeded(workload, combination, device, **place):
        seed = workload.seed + bool(combination.techniques)
        return real(replace(workload, seed=seed), combination, device, **place)

    monkeypatch.setattr(subject, "build", reseeded)
    assert "differs from the baseline's" in broken(measured("ckpt1"))

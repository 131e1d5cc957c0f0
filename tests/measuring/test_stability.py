"""Clipping, warm-up and the loss scaler, measured for real on losses of extreme size."""

import pytest
import torch

from stepbench.measuring.measure import measure
from stepbench.records.case import Case
from stepbench.training.techniques import parse
from tests.measuring.conftest import QUICK

STEEP = "tests.training.own_workloads:steep"
RATE = 3e-4


def ok(record):
    assert record.outcome.ok, (record.outcome, record.outcome.traceback)
    return record.rounds[0].case


@pytest.mark.parametrize("with_", ["", "bf16+", "fp16+", "accum2+"])
def test_the_optimizer_is_given_a_clipped_gradient(measured, with_):
    one = ok(measured(f"{with_}clip1", STEEP))
    assert one.counters.applied_norm == pytest.approx(1.0, rel=1e-3)
    assert min(one.grad_norms) > 10  # the parity figures are of the gradient before


@pytest.mark.parametrize("parallel", ["ddp", "zero1", "zero2", "fsdp2"])
def test_the_norm_over_shards_is_the_whole_models(machine, parallel):
    case = Case(workload=STEEP, combination=parse(f"clip1+{parallel}"), ranks=2)
    one = ok(measure(case, QUICK, machine))
    assert one.counters.applied_norm == pytest.approx(1.0, rel=1e-3)


def test_clipping_to_another_norm_underneath(measured, monkeypatch):
    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: real(parameters, 5 * norm)
    )
    record = measured("clip1", STEEP)
    assert record.outcome.kind == "invalid"
    assert "the optimizer was given gradients of norm 5, not 1" in record.outcome.reason


def test_no_clipping_underneath(measured, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: None)
    assert "clip1000 was not active: nothing was clamped" in str(measured("clip1000").outcome)


@pytest.mark.parametrize("with_", ["", "fp16+", "adamw-foreach+"])
def test_warm_up_is_linear(measured, with_):
    rates = ok(measured(f"{with_}warmup4")).counters.learning_rates
    assert rates == pytest.approx([RATE / 4, RATE / 2, 3 * RATE / 4, *5 * [RATE]])
    assert set(ok(measured("baseline")).counters.learning_rates) == {RATE}


def test_overflow_skips_steps_and_halves_the_scale(measured):
    one = ok(measured("fp16", f"{STEEP}@factor=1000.0"))
    assert one.skipped_steps >= 1
    assert one.counters.loss_scale == pytest.approx(2.0**16 / 2**one.skipped_steps, rel=0.01)


def test_underflow_is_rescued_by_the_scale(measured):
    """Gradients of 1e-8 are zero in float16; the scaler brings them back, and the loss is right."""
    one = ok(measured("fp16", f"{STEEP}@factor=1e-6"))
    assert one.skipped_steps == 0
    assert one.counters.loss_scale == pytest.approx(2.0**16, rel=0.01)


def test_underflow_without_a_scale_is_no_number(measured, monkeypatch):
    real = torch.amp.GradScaler
    # Just above 1: what proves scaling is content, and only the loss tells.
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: real(device, 1.5, enabled=enabled)
    )
    record = measured("fp16", f"{STEEP}@factor=1e-6")
    assert record.outcome.kind == "invalid"
    assert "differs from the baseline's by" in record.outcome.reason


def test_where_the_norms_stand_is_a_parameter(measured):
    before, after = (ok(measured("baseline", f"gpt-tiny@norm={norm}")) for norm in ("pre", "post"))
    width = 32  # the norm after the last block is gone
    assert before.counters.elements - after.counters.elements == width
    assert before.losses != after.losses

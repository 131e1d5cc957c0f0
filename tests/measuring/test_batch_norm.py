"""BatchNorm or dropout make accumulation other mathematics: reported, the rest held against it."""

from dataclasses import replace

import pytest

from stepbench.measuring.measure import _reference
from stepbench.metrics.beside import LOSS_DIFFERENCE
from stepbench.records.case import Case
from stepbench.training import step as step_module
from stepbench.training.techniques import parse
from stepbench.training.workloads import load


def test_its_distance_from_the_full_batch_is_reported_without_judging(measured):
    record = measured("accum4", "cnn-tiny")
    assert record.outcome.ok, record.outcome
    assert LOSS_DIFFERENCE.of(record) > 0.01


def test_group_norm_is_judged(measured):
    record = measured("accum4", "cnn-tiny@norm=group")
    assert record.outcome.ok, record.outcome
    assert LOSS_DIFFERENCE.of(record) < 1e-3


def test_what_comes_with_it_is_held_against_it(measured, monkeypatch):
    assert measured("accum4+ckpt1", "cnn-tiny").outcome.ok
    assert measured("bf16+accum4", "cnn-tiny").outcome.ok
    real = step_module.plain_loop
    from stepbench.training import build as build_module

    def doubled(*arguments):
        loop = real(*arguments)
        if not arguments[2].plan.autocast:
            return loop
        return replace(loop, forward=lambda batch: loop.forward(batch) * 2)

    monkeypatch.setattr(build_module, "plain_loop", doubled)
    outcome = measured("bf16+accum4", "cnn-tiny").outcome
    assert outcome.kind == "invalid"
    assert "differs from accum4's by" in outcome.reason


def test_dropout_draws_anew_for_each_micro_batch(measured):
    record = measured("accum4", "gpt-tiny@dropout=0.1")
    assert record.outcome.ok, record.outcome
    assert LOSS_DIFFERENCE.of(record) > 1e-3
    assert LOSS_DIFFERENCE.of(measured("ckpt1", "gpt-tiny@dropout=0.1")) == 0.0


@pytest.mark.parametrize(
    ("combination", "held_against"),
    [
        ("ddp+sync-batchnorm", "ddp+sync-batchnorm"),
        ("bf16+ddp+sync-batchnorm", "ddp+sync-batchnorm"),
        ("zero1+sync-batchnorm", "ddp-unused+sync-batchnorm"),
        ("bf16+ddp", "ddp"),
    ],
)
def test_shared_statistics_are_never_held_against_local_ones(combination, held_against):
    case = Case(workload="cnn-tiny", combination=parse(combination), ranks=2)
    reference = _reference(case, replace(load("cnn-tiny"), batch_dependent=True))
    assert (str(reference.combination), reference.ranks) == (held_against, 2)

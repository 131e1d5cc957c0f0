"""What ordinary models do, and no transformer of ours: what is right is never `invalid`."""

import pytest

from stepbench.measuring.measure import measure
from stepbench.measuring.settings import Settings
from stepbench.records.case import Case
from stepbench.stats import measures
from stepbench.training.techniques import parse

OWN = "tests.training.own_workloads"
QUICK = Settings(rounds=1, extra_rounds=0, max_steps=3, min_steps=3)


@pytest.mark.parametrize("name", ["sgd", "adamw-loop", "adamw-foreach", "adamw-fused", "adafactor"])
def test_a_part_without_gradients_is_not_updated(measured, name):
    assert measured(name, f"{OWN}:with_an_unused_part").outcome.ok


@pytest.mark.parametrize("name", ["zero2", "fsdp2"])
def test_a_part_without_gradients_is_not_exchanged(machine, name):
    case = Case(workload=f"{OWN}:with_an_unused_part", combination=parse(name), ranks=2)
    outcome = measure(case, QUICK, machine).outcome
    assert outcome.ok, outcome


def test_gradients_that_share_a_tensor_are_not_buckets(machine):
    case = Case(workload=f"{OWN}:joined", combination=parse("ddp"), ranks=2)
    outcome = measure(case, QUICK, machine).outcome
    assert outcome.ok, outcome


def test_a_model_without_products(measured):
    workload = f"{OWN}:without_products"
    assert measured("accum2", workload).outcome.ok
    outcome = measured("bf16", workload).outcome
    assert (outcome.kind, outcome.reason) == (
        "unsupported",
        "the model has no matrix products to compute in 16 bits",
    )


def test_an_optimizer_of_another_kind_is_not_taken_for_the_same(measured):
    outcome = measured("adamw-fused", f"{OWN}:amsgrad").outcome
    assert outcome.kind == "unsupported"
    assert "is amsgrad, which the optimizers here are not" in outcome.reason


def test_compiled_dropout_draws_other_numbers(measured, monkeypatch):
    monkeypatch.setattr("stepbench.training.techniques.compiling.BACKEND", "aot_eager")
    outcome = measured("compile", "gpt-tiny@dropout=0.1").outcome
    assert outcome.ok
    assert "loss not judged" in outcome.reason


def test_loading_in_bursts_counts_without_workers_too(measured):
    """Every eighth batch is waited for: a median of steps would hide nearly all of it."""
    settings = Settings(rounds=1, extra_rounds=0, max_steps=16, min_steps=16)
    one = measured("baseline", f"{OWN}:in_bursts", settings).rounds[0].case
    assert measures.step_s(one) == pytest.approx(sum(one.step_s) / 16)
    assert measures.step_s(one) > 2 * sorted(one.step_s)[8]

"""Ordinary models get an honest number, or the reason why there is none."""

import pytest

from harness.core import LONGEST_REASON, Case, Outcome
from harness.measuring.measure import measure
from harness.measuring.settings import Settings
from harness.measuring.sweep import this_machine
from harness.training.techniques import parse, plan_of

QUICK = Settings(rounds=1, extra_rounds=0, max_steps=10, min_steps=10, deadline_s=60)


def outcome_of(workload: str, combination: str) -> Outcome:
    chosen = parse(combination)
    ranks = 2 if plan_of(chosen).distributed else 1
    case = Case(workload=f"tests.models.{workload}", combination=chosen, ranks=ranks)
    return measure(case, QUICK, this_machine()).outcome


@pytest.mark.parametrize(
    ("workload", "combination"),
    [
        ("frozen:partly_frozen", "ckpt1"),
        ("frozen:partly_frozen", "ckpt-sqrt"),
        ("frozen:one_left_out", "ckpt1+fsdp2"),
        ("frozen:one_left_out", "ddp-unused"),
        ("frozen:branching", "ddp-unused"),
        ("frozen:sparse", "accum2"),
        ("frozen:sparse", "ddp"),
    ],
)
def test_an_honest_model_is_ok(workload, combination):
    outcome = outcome_of(workload, combination)
    assert outcome.ok, outcome


@pytest.mark.parametrize(
    ("workload", "combination", "kind", "told"),
    [
        ("frozen:one_left_out", "ddp", "failed", "choose ddp-unused"),
        ("frozen:sparse", "fsdp2", "unsupported", "make embeddings with sparse=False"),
        ("frozen:sparse", "sgd", "unsupported", "momentum of sparse gradients grows"),
        ("vision:resnet", "bf16+fsdp2", "unsupported", "choose ddp or zero1"),
    ],
)
def test_a_reason_names_the_remedy(workload, combination, kind, told):
    outcome = outcome_of(workload, combination)
    assert outcome.kind == kind, outcome
    assert told in outcome.reason


def test_a_long_reason_is_cut_and_kept():
    words = "Could not run 'aten::norm'. " * 40
    outcome = Outcome(kind="failed", reason=words, traceback="file.py:1 f: g()")
    assert len(outcome.reason) <= LONGEST_REASON
    assert outcome.traceback == f"file.py:1 f: g()\n{words}"
    assert Outcome.from_json(outcome.to_json()) == outcome

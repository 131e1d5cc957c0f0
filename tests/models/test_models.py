"""Ordinary models get an honest number, or the reason why there is none."""

import pytest

from stepbench.measuring.measure import measure
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import this_machine
from stepbench.records.case import Case
from stepbench.records.outcome import LONGEST_REASON, Outcome
from stepbench.report.tables import terminal
from stepbench.training.techniques import compiling, parse, plan_of
from tests.synthetic import run_file

QUICK = Settings(rounds=1, extra_rounds=0, max_steps=10, min_steps=10)


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
        ("frozen:branching", "adamw-fused"),
        ("frozen:branching", "adafactor"),
        ("frozen:sparse", "accum2"),
        ("frozen:sparse", "ddp"),
        ("language:gpt2", "bf16"),
        ("language:gpt2", "ckpt1"),
        ("language:gpt2_in_groups", "adamw-fused"),
        ("language:gpt2_in_groups", "fsdp2"),
        ("language:t5", "ckpt1"),
        ("language:contrastive", "accum2"),
        ("gradients:gradient_penalty", "ckpt1"),
        ("gradients:gradient_penalty", "ddp"),
        ("gradients:physics_informed", "accum2"),
        ("gradients:physics_informed", "ckpt1"),
        ("gradients:complex_weights", "bf16"),
        ("gradients:complex_weights", "ddp"),
    ],
)
def test_an_honest_model_is_ok(workload, combination):
    outcome = outcome_of(workload, combination)
    assert outcome.ok, outcome


@pytest.mark.parametrize(
    ("workload", "combination", "kind", "told"),
    [
        ("frozen:one_left_out", "ddp", "failed", "choose ddp-unused"),
        ("language:contrastive_unsaid", "accum2", "invalid", "say batch_dependent=True"),
        ("language:uneven_padding_unsaid", "accum2", "invalid", "loss_terms= where samples"),
        ("language:t5_with_its_cache", "ckpt1", "failed", "takes use_cache=False"),
        ("language:without_loss", "baseline", "failed", "call= must return it"),
        ("language:without_mean", "baseline", "failed", "must return the mean over all terms"),
        ("language:mixture_of_experts", "ddp", "failed", "gradient on one rank only: choose ddp"),
        ("language:mixture_of_experts", "fsdp2", "failed", "one rank only: choose ddp-unused"),
        ("language:redundancy_reduction", "accum2", "invalid", "say batch_dependent=True"),
        ("gradients:gradient_penalty", "compile", "unsupported", "no gradient of a gradient"),
        ("gradients:gradient_penalty", "zero2", "unsupported", "choose ddp or zero1"),
        ("gradients:physics_informed", "bf16", "unsupported", "products in float64 as they are"),
        ("gradients:complex_weights", "adamw-fused", "unsupported", "choose adamw-foreach"),
        ("gradients:complex_weights", "fsdp2", "unsupported", "choose ddp"),
        ("gradients:complex_weights", "zero1", "unsupported", "choose ddp"),
        ("gradients:complex_weights", "adafactor", "unsupported", "choose adamw-foreach"),
        ("gradients:complex_weights", "fp16", "unsupported", "choose bf16"),
        ("gradients:gradient_penalty", "ckpt-selective", "unsupported", "choose ckpt1"),
        ("state:lightning", "ddp", "failed", "call the model itself"),
        ("frozen:sparse", "fsdp2", "unsupported", "make embeddings with sparse=False"),
        ("frozen:sparse", "sgd", "unsupported", "momentum of sparse gradients grows"),
        ("language:lstm", "lora8", "unsupported", "no layer to adapt but its output's, fc"),
        ("vision:resnet", "bf16+fsdp2", "unsupported", "choose ddp or zero1"),
    ],
)
def test_a_reason_names_the_remedy(monkeypatch, workload, combination, kind, told):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    outcome = outcome_of(workload, combination)
    assert outcome.kind == kind, outcome
    assert told in outcome.reason


@pytest.mark.parametrize(
    ("workload", "combination", "told"),
    [
        ("language:gpt2", "lora8", "adapters on 8 Conv1D"),
        ("vision:resnet", "lora8", "adapters on 19 Conv2d"),
        ("frozen:branching", "compile", "% of products compiled, 1 frames left to eager"),
    ],
)
def test_a_row_says_what_was_done_only_in_part(monkeypatch, workload, combination, told):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    outcome = outcome_of(workload, combination)
    assert outcome.ok, outcome
    assert told in outcome.reason


@pytest.mark.parametrize(
    ("workload", "given_up"),
    [
        ("language:lstm", "1 frames of the model: 0 of 3 products"),
        ("language:mixture_of_experts", "2 frames of the model: 6 of 25 products"),
    ],
)
def test_what_the_compiler_gives_up_is_not_called_invalid(monkeypatch, workload, given_up):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    outcome = outcome_of(workload, "compile")
    assert outcome.kind == "unsupported"
    assert outcome.reason.startswith(f"torch.compile gave up {given_up} ran in compiled graphs")
    assert outcome.reason.endswith("; TORCH_LOGS=graph_breaks says why")


def test_what_is_no_tensor_is_in_the_peak_of_the_process():
    case = Case(workload="tests.models.frozen:in_numpy")
    record = measure(case, QUICK, this_machine())
    memory = record.rounds[0].case.memory
    if memory.process_peak_bytes is None:
        pytest.skip("this kernel does not set the mark of the most resident memory back")
    assert memory.steady_step.allocated_bytes < 4 * 2**20
    assert 16 * 2**20 < memory.process_peak_bytes < 32 * 2**20
    assert "process MiB" in terminal(run_file([record]))


def test_a_long_reason_is_cut_and_kept():
    words = "Could not run 'aten::norm'. " * 40
    outcome = Outcome(kind="failed", reason=words, traceback="file.py:1 f: g()")
    assert len(outcome.reason) <= LONGEST_REASON
    assert outcome.traceback == f"file.py:1 f: g()\n{words}"
    assert Outcome.from_json(outcome.to_json()) == outcome

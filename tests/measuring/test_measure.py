"""A case measured for real: what the record holds, by arithmetic done by hand."""

import gc
import time
from dataclasses import replace

import pytest

from stepbench.measuring.measure import measure
from stepbench.measuring.settings import Settings
from stepbench.metrics.beside import LOSS_DIFFERENCE
from stepbench.records.case import Case
from stepbench.records.run import Record
from stepbench.training import build as build_module
from stepbench.training.techniques import AXES, incompatible, parse, unsupported
from stepbench.training.workloads import load
from tests.extras import skip_where_emulated
from tests.synthetic import MACHINE

# gpt-tiny: 2 layers, width 32, vocabulary 256, sequences of 16, batch 8; tied embeddings.
LAYERS, WIDTH, VOCABULARY, SEQ, BATCH = 2, 32, 256, 16, 8
PARAMETERS = VOCABULARY * WIDTH + SEQ * WIDTH + LAYERS * (12 * WIDTH**2 + 2 * WIDTH) + WIDTH
TOKENS = SEQ * BATCH


def test_the_baseline_by_hand(measured):
    record = measured("baseline")
    assert record.outcome.ok, record.outcome
    one = record.rounds[0].case
    assert len(one.step_s) == len(one.cpu_s) == 3
    assert sum(one.step_s) == pytest.approx(one.window_s, rel=0.01)
    assert one.tokens == TOKENS
    assert len(one.losses) == len(one.grad_norms) == 8
    assert one.same_parameter_steps == len(one.descents) + 1 == 3
    assert LOSS_DIFFERENCE.of(record) == 0.0
    memory = one.memory
    assert memory.parameter_bytes == memory.gradient_bytes == 4 * PARAMETERS
    tensors = 3 + 6 * LAYERS  # each with a step counter of 4 bytes
    assert memory.optimizer_bytes == 2 * 4 * PARAMETERS + 4 * tensors
    assert memory.build.allocated_bytes >= 4 * PARAMETERS
    assert memory.steady_step.allocated_bytes > 4 * 4 * PARAMETERS
    assert memory.working_bytes > 0
    # Timed ones, and one each for the process' own peak, the tensors' peak and the counters.
    # Twelve more decide whether memory grows, where something else made it seem so.
    assert one.steps_run - (one.warmup_steps + 3 + 3) in (0, 12)


def test_flops_by_hand(measured):
    counters = measured("baseline").rounds[0].case.counters
    # Each weight of a product: 2 FLOPs a token forward, 4 backward. The head is the embedding.
    products = 6 * TOKENS * (LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH)
    # Attention: scores and mixing forward (2 products), and 5 products backward.
    attention = LAYERS * BATCH * 7 * 2 * SEQ * SEQ * WIDTH
    assert counters.flops == products + attention
    assert counters.matmul_flops == {"float32": products + attention}
    # One of them is of scores that forward has had: unfused attention keeps them.
    assert counters.recomputed_score_flops == attention // 7
    unfused = measured("sdpa-math").rounds[0].case.counters
    assert unfused.recomputed_score_flops == 0
    assert (
        unfused.flops
        == unfused.model_flops
        == counters.model_flops
        == products + attention * 6 // 7
    )
    assert counters.matmul_error < 1e-5
    assert (counters.forwards, counters.updates, counters.blocks) == (1, 1, LAYERS)


def test_recomputation_costs_what_it_says(measured):
    base = measured("baseline").rounds[0].case.counters
    every = measured("ckpt1").rounds[0].case.counters
    selective = measured("ckpt-selective").rounds[0].case.counters
    # A block forward again, but for its last product, whose result backward does not need.
    again = 2 * TOKENS * 8 * WIDTH**2 + BATCH * 2 * 2 * SEQ * SEQ * WIDTH
    assert every.flops - base.flops == LAYERS * again
    assert selective.flops == base.flops
    assert every.recomputed_blocks == selective.recomputed_blocks == (1, 0)
    assert (every.recomputed_products, selective.recomputed_products) == (LAYERS * 4, 0)
    assert every.saved_bytes < selective.saved_bytes < base.saved_bytes


def test_accumulation_holds_a_micro_batch(measured):
    base = measured("baseline").rounds[0].case
    four = measured("accum4").rounds[0].case
    assert four.counters.forwards == 4
    assert four.counters.saved_bytes == pytest.approx(base.counters.saved_bytes / 4, rel=0.01)
    assert four.counters.flops == base.counters.flops
    assert four.memory.steady_step.allocated_bytes < base.memory.steady_step.allocated_bytes


def test_rounds_are_balanced(machine):
    settings = Settings(rounds=4, extra_rounds=0, max_steps=1, min_steps=1)
    record = measure(Case(workload="gpt-tiny"), settings, machine)
    assert [one.order for one in record.rounds] == [
        "baseline first", "case first", "case first", "baseline first",
    ]  # fmt: skip


def shape(name):
    """A model with enough blocks for what chooses among them."""
    return "gpt-1m@seq=8" if "ckpt" in name else "gpt-tiny"


def runs_alone(name):
    """Whether a CPU runs it with nothing else chosen; what compiles or adapts has own tests."""
    case = Case(workload=shape(name), combination=parse(name))
    return not (
        name.startswith(("compile", "lora"))
        or unsupported(case, MACHINE)
        or incompatible(load(case.workload), case)
    )


@pytest.mark.parametrize(
    "name",
    [
        # All baselines are one.
        *sorted({str(parse(name)) for axis in AXES for name in axis.examples if runs_alone(name)}),
        "bf16+accum4+ckpt2",
        "fp16+accum2+ckpt-sqrt",
        "accum8+ckpt-selective",
    ],
)
def test_every_technique_is_ok_and_active(measured, name):
    record = measured(name, shape(name))
    if "is not installed" in (record.outcome.reason or ""):
        pytest.skip(record.outcome.reason)
    skip_where_emulated(record)
    assert record.outcome.ok, record.outcome
    assert Record.from_json(record.to_json()) == record


def test_what_a_cpu_lacks_is_unsupported_before_anything_starts(measured):
    record = measured("tf32")
    assert (record.outcome.kind, record.rounds) == ("unsupported", ())
    assert "needs an NVIDIA GPU" in record.outcome.reason


def test_what_does_not_fit_the_workload_is_unsupported_in_a_product(measured):
    assert "does not divide" in measured("accum3").outcome.reason
    record = measured("ckpt3")  # gpt-tiny has 2 blocks
    assert (record.outcome.kind, record.rounds) == ("unsupported", ())
    assert "2 repeated blocks" in record.outcome.reason


def test_counts_repeat_exactly(machine):
    case = Case(workload="gpt-tiny", combination=parse("bf16+accum2+ckpt1"))
    record = measure(case, Settings(rounds=2, extra_rounds=0, max_steps=1, min_steps=1), machine)
    first, second = (one.case for one in record.rounds)
    assert first.counters.counts == second.counters.counts
    assert first.memory.steady_step.allocated_bytes == second.memory.steady_step.allocated_bytes
    assert first.losses == second.losses


@pytest.mark.parametrize(("combination", "slow"), [("baseline", "update"), ("accum2", "backward")])
def test_a_slow_part_of_the_step_is_seen_where_it_is(measured, monkeypatch, combination, slow):
    real = build_module.plain_loop

    def slowed(*arguments):
        loop = real(*arguments)
        function = getattr(loop, slow)

        def sleeping(*given):
            if not gc.isenabled():  # in the timed steps
                time.sleep(0.1)
            return function(*given)

        return replace(loop, **{slow: sleeping})

    monkeypatch.setattr(build_module, "plain_loop", slowed)
    one = measured(combination).rounds[0].case
    parts = {part: sum(times) for part, times in one.parts_s.items()}
    assert sum(parts.values()) == pytest.approx(sum(one.step_s), rel=0.02)
    assert max(parts, key=parts.get) == slow
    assert set(parts) == {"data", "forward", "backward", "update", "rest"}

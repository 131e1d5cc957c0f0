"""LoRA measured for real: what is trained by arithmetic done by hand, and faults of it."""

import sys

import pytest

from stepbench.measuring.measure import measure
from stepbench.measuring.preload import preload
from stepbench.records.case import Case
from stepbench.training.techniques import adapters, parse
from tests.extras import needs
from tests.measuring.conftest import QUICK

pytestmark = needs("peft")

# gpt-tiny: 2 blocks of width 32; in + out of each linear layer.
ATTENTION = (32 + 96) + (32 + 32)
BLOCK = ATTENTION + (32 + 128) + (128 + 32)
LAYERS, PARAMETERS = 2, 256 * 32 + 16 * 32 + 32 + 2 * (12 * 32**2 + 2 * 32)


def ok(record):
    assert record.outcome.ok, (record.outcome, record.outcome.traceback)
    return record.rounds[0].case


@pytest.mark.parametrize("rank", [4, 8, 16, 32])
def test_trained_parameters_are_rank_times_in_plus_out(measured, rank):
    counters = ok(measured(f"lora{rank}")).counters
    assert counters.trained_elements == rank * LAYERS * BLOCK
    assert counters.elements == PARAMETERS + rank * LAYERS * BLOCK


def test_attention_only(measured):
    assert ok(measured("lora-attention8")).counters.trained_elements == 8 * LAYERS * ATTENTION


def test_gradients_and_optimizer_state_are_of_what_is_trained(measured):
    memory = ok(measured("lora8")).memory
    trained = 8 * LAYERS * BLOCK
    matrices = 2 * 4 * LAYERS
    assert memory.gradient_bytes == 4 * trained
    assert memory.optimizer_bytes == 2 * 4 * trained + 4 * matrices
    assert memory.parameter_bytes == 4 * (PARAMETERS + trained)


def test_a_plain_module_of_ones_own(measured):
    counters = ok(measured("lora4", "tests.training.own_workloads:plain")).counters
    assert counters.trained_elements == 4 * ((16 + 32) + (32 + 32) + (32 + 4))


@pytest.mark.parametrize("with_", ["ckpt1", "ckpt-selective", "accum4", "bf16"])
def test_it_composes_on_one_rank(measured, with_):
    """Held against lora8 alone: the rest of the combination is the same mathematics."""
    ok(measured(f"lora8+{with_}"))


@pytest.mark.parametrize("parallel", ["ddp", "zero1", "zero2", "fsdp2"])
def test_it_composes_on_two_ranks(machine, parallel):
    case = Case(workload="gpt-tiny", combination=parse(f"lora8+{parallel}"), ranks=2)
    one = ok(measure(case, QUICK, machine))
    assert sum(rank.memory.gradient_bytes for rank in one.ranks) in (
        4 * 8 * LAYERS * BLOCK,  # sharded
        2 * 4 * 8 * LAYERS * BLOCK,  # held by both
    )


def test_what_cannot_be_adapted_is_unsupported(measured):
    record = measured("lora-attention4", "tests.training.own_workloads:plain")
    assert record.outcome.kind == "unsupported"
    assert "has no layers of attention to adapt" in record.outcome.reason
    record = measured("lora4", "tests.training.own_workloads:without_products")
    assert "has no Linear, Conv1D or Conv2d layers to adapt" in record.outcome.reason


def test_another_rank_than_asked_for_is_no_number(measured, monkeypatch):
    real = adapters._inject
    monkeypatch.setattr(
        adapters, "_inject", lambda model, rank, layers, seed: real(model, 2 * rank, layers, seed)
    )
    record = measured("lora4")
    assert record.outcome.kind == "failed"
    assert "8192 parameters are trained, not 4096" in record.outcome.reason


def test_a_base_that_gets_gradients_is_no_number(measured, monkeypatch):
    from stepbench.measuring.probes import counters

    real = counters.count

    def leaky(loop, *arguments, **named):
        for frozen in [one for one in loop.model.parameters() if not one.requires_grad][:1]:
            frozen.grad = frozen.detach().clone()
        return real(loop, *arguments, **named)

    monkeypatch.setattr(counters, "count", leaky)
    record = measured("lora4")
    assert record.outcome.kind == "invalid"
    assert "1 frozen parameters had a gradient" in record.outcome.reason


def test_the_process_that_forks_loads_peft_and_nothing_that_asks_cuda():
    preload(["peft", "bitsandbytes", "torchao.optim"])
    assert "peft" in sys.modules
    assert "bitsandbytes" not in sys.modules
    assert "torchao" not in sys.modules

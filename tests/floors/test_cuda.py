"""What the documents promise of a GPU with tensor cores, against fp32 without TF32.

The figures are the documents': 16-bit 2x faster (2-3x, 2-4x) in about half the memory;
checkpointing 20-30% slower in a half to a quarter of the memory; accumulation saves activations and
no time. Whether a promise of peak memory survives a whole model is a finding, not a fault of this
project: those are marked, and reported as xfailed with their figures, or xpassed (`pytest -rxX`).
"""

import pytest

pytestmark = pytest.mark.stepbench(workload="gpt-124m", machine="cuda")

# The vocabulary's logits, in float32 for the loss under every technique, are much of this peak.
promised = pytest.mark.xfail(strict=False, reason="a promise of the documents, not of this project")


@pytest.mark.parametrize("technique", ["bf16", "fp16"])
def test_16_bit_is_twice_as_fast(floor, technique):
    floor(technique).speed(at_least=2)


@promised
@pytest.mark.parametrize("technique", ["bf16", "fp16"])
def test_16_bit_needs_about_half_the_memory(floor, technique):
    floor(technique).memory(at_most=0.6)


def test_checkpointing_costs_at_most_30_percent(floor):
    ckpt1 = floor("ckpt1").speed(at_least=0.7).working_memory(at_most=0.75)
    ckpt1.count("recomputed_blocks", at_least=12, at_most=12).ratio("saved_bytes", at_most=0.5)


@promised
def test_checkpointing_needs_half_the_memory(floor):
    floor("ckpt1").memory(at_most=0.5)


@promised
def test_every_second_block_costs_at_most_15_percent(floor):
    floor("ckpt2").speed(at_least=0.85)


def test_accumulation_saves_activations_and_no_time(floor):
    accum4 = floor("accum4").memory(at_most=0.6).speed(at_most=1.1)
    accum4.ratio("saved_bytes", at_most=0.3).count("forwards", at_least=4, at_most=4)


@promised
def test_16_bit_with_checkpointing_needs_a_quarter_of_the_memory_at_0_7x_the_speed(floor):
    """The recipe's row: 4x less memory at 0.7x of fp32's speed or better."""
    floor("bf16+ckpt1").memory(at_most=0.25).speed(at_least=0.7)

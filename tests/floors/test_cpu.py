"""What holds on every processor: bytes, counts, and a speed ratio too large for a machine to turn.

Small enough that each process takes a quarter of a second. Times that depend on the processor
(16-bit products are fast on some and slow on others) are no floors of this file.
"""

import pytest

pytestmark = pytest.mark.stepbench(workload="gpt-tiny", machine="cpu")


def test_checkpointing_every_block_recomputes_it_and_halves_what_a_step_works_in(floor):
    ckpt1 = floor("ckpt1").memory(at_most=0.75).working_memory(at_most=0.6)
    ckpt1.ratio("saved_bytes", at_most=0.35).count("recomputed_blocks", at_least=2, at_most=2)
    ckpt1.ratio("flops", at_least=1.1, at_most=1.34)  # at most the whole forward pass again


def test_checkpointing_every_second_block_lies_between(floor):
    ckpt2 = floor("ckpt2").memory(at_most=0.9).count("recomputed_blocks", at_least=1, at_most=1)
    ckpt2.ratio("saved_bytes", at_least=0.35, at_most=0.75)


def test_selective_checkpointing_repeats_no_product(floor):
    selective = floor("ckpt-selective").ratio("saved_bytes", at_most=0.85)
    selective.count("recomputed_products", at_most=0).ratio("flops", at_least=1, at_most=1)


def test_accumulation_divides_what_is_saved_and_adds_no_product(floor):
    accum4 = floor("accum4").memory(at_most=0.65).ratio("saved_bytes", at_most=0.26)
    accum4.ratio("flops", at_least=1, at_most=1)
    accum4.count("forwards", at_least=4, at_most=4).count("updates", at_least=1, at_most=1)


def test_both_together_save_more_than_either(floor):
    both = floor("accum4+ckpt1").memory(at_most=0.57).ratio("saved_bytes", at_most=0.1)
    both.count("recomputed_blocks", at_least=8, at_most=8)


@pytest.mark.parametrize("technique", ["bf16", "fp16"])
def test_16_bit_saves_a_quarter_of_what_is_saved(floor, technique):
    floor(technique).ratio("saved_bytes", at_most=0.8).memory(at_most=0.9)


def test_eight_micro_batches_of_one_sample_are_slow(floor):
    """Eight times the calls for the same products: on such a small model the calls are the cost."""
    floor("accum8").speed(at_most=0.8)


@pytest.mark.stepbench(ranks=2)
def test_sharding_over_two_ranks_leaves_each_less(floor):
    floor("fsdp2").memory(at_most=0.75)
    floor("zero1").memory(at_most=0.75).ratio("flops", at_least=0.5, at_most=0.5)

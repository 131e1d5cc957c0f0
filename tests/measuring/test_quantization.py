"""8-bit floats and rounding for int8, measured for real through torchao."""

import pytest

from stepbench.records.case import Case
from stepbench.training.techniques import parse, unsupported
from tests.extras import needs, skip_where_emulated

pytestmark = needs("torchao")

# gpt-tiny: every product but attention and the tied head, which is no layer of a block.
TOKENS, WIDTH, LAYERS = 128, 32, 2
LINEAR = 6 * TOKENS * LAYERS * 12 * WIDTH**2
A100 = {"gpus": [{"name": "A100", "capability": "8.0", "bf16": True}]}


def ok(record):
    skip_where_emulated(record)
    assert record.outcome.ok, (record.outcome, record.outcome.traceback)
    return record.rounds[0].case


def test_every_product_of_the_blocks_is_in_8_bits(measured):
    flops = ok(measured("fp8")).counters.matmul_flops
    assert sum(one for kind, one in flops.items() if kind.startswith("float8")) == LINEAR
    assert flops["float32"] == ok(measured("baseline")).counters.flops - LINEAR


@pytest.mark.parametrize("name", ["bf16+fp8", "fp8+ckpt1", "bf16+qat-int8", "qat-int8+accum2"])
def test_it_composes(measured, name):
    ok(measured(name))


def test_sizes_that_no_tile_fits_are_unsupported(measured):
    record = measured("fp8", "tests.training.own_workloads:narrow")
    assert record.outcome.kind == "unsupported"
    assert "no linear layers whose sizes are multiples of 16 to quantize" in record.outcome.reason
    assert "has no linear layers to quantize" in measured("qat-int8", "cnn-tiny").outcome.reason


def test_what_a_gpu_needs():
    case = Case(workload="gpt-tiny", combination=parse("fp8"))
    assert "8.9 or later, which A100 lacks" in unsupported(case, A100)

"""Attention by each kernel that a CPU has: what it keeps, and what cannot be chosen."""

import pytest
import torch

from stepbench.records.case import Case
from stepbench.training.techniques import attention, parse, unsupported

H100 = {"gpus": [{"name": "H100", "capability": "9.0", "bf16": True}]}
P100 = {"gpus": [{"name": "P100", "capability": "6.0", "bf16": False}]}


def ok(record):
    assert record.outcome.ok, (record.outcome, record.outcome.traceback)
    return record.rounds[0].case


def reason(combination, machine):
    return unsupported(Case(workload="gpt-tiny", combination=parse(combination)), machine)


@pytest.mark.parametrize("with_", ["", "+ckpt1", "+ckpt-selective", "+accum2"])
def test_a_kernel_ran_in_backward_too(measured, with_):
    one = ok(measured(f"sdpa-math{with_}"))
    assert not any("scaled_dot_product" in name for name in one.counters.operators)
    products = one.counters.operators["aten.bmm"]
    assert products >= 2 * (2 + 4)  # 2 blocks: scores and mixing, and two gradients of each


def test_math_keeps_every_score_and_flash_none(measured):
    """What is linear in the length drops out of f(2n) - 2 f(n); a softmax a block remains."""

    def beyond_linear(name):
        short, long = (
            ok(measured(name, f"gpt-tiny@seq={seq}")).counters.saved_bytes for seq in (32, 64)
        )
        return long - 2 * short

    batch, heads, layers = 8, 2, 2
    scores = 4 * batch * heads * layers * (64**2 - 2 * 32**2)
    assert beyond_linear("sdpa-math") == pytest.approx(scores, abs=8)
    assert beyond_linear("sdpa-flash") == pytest.approx(0, abs=8)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_long_scores_in_32_bits_leave_precision_active(measured, precision):
    """torch's own doing: two thirds of these products are attention's."""
    flops = ok(measured(f"{precision}+sdpa-math", "gpt-tiny@seq=512,batch=2")).counters.matmul_flops
    assert flops["float32"] == 2 * sum(flops.values()) // 3


def test_what_a_machine_lacks():
    for name in ("sdpa-efficient", "sdpa-cudnn"):
        assert "needs an NVIDIA GPU" in reason(name, {"gpus": []})
        assert "torch has no such kernel for a CPU" in reason(name, {"gpus": []})
    assert reason("sdpa-flash", {"gpus": []}) is None
    assert "sdpa-flash with fp32: the kernel computes in 16 bits only" in reason("sdpa-flash", H100)
    assert reason("bf16+sdpa-flash", H100) is None
    assert reason("sdpa-efficient", H100) is None
    assert "8.0 or later, which P100 lacks" in reason("fp16+sdpa-flash", P100)


def test_a_model_without_attention_is_unsupported(measured):
    record = measured("sdpa-math", "tests.training.own_workloads:plain")
    assert record.outcome.kind == "unsupported"
    assert "never calls torch's scaled_dot_product_attention" in record.outcome.reason


def test_attention_that_no_kernel_fits_is_unsupported(measured):
    record = measured("sdpa-flash", "tests.training.own_workloads:dropout_in_attention")
    assert record.outcome.kind == "unsupported"
    assert "no such kernel" in record.outcome.reason


def test_flash_replaced_underneath(measured, monkeypatch):
    real = attention.sdpa_kernel
    monkeypatch.setattr(
        attention, "sdpa_kernel", lambda kernel: real(torch.nn.attention.SDPBackend.MATH)
    )
    record = measured("sdpa-flash", "gpt-tiny")
    assert record.outcome.kind == "invalid"
    assert "sdpa-flash was not active: aten._safe_softmax ran" in record.outcome.reason

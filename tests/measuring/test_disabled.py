"""Every technique, its hooks taken away underneath while its plan and name stay: `invalid`."""

from dataclasses import replace

import pytest

from stepbench.training import build as build_module
from tests.extras import needs

# What each does is in its own tests; here is that its proof sees nothing be done.
CHOICES = [
    ("sdpa-math", "aten._scaled_dot_product_flash_attention_for_cpu ran"),
    pytest.param("fp8", "float32 inputs, none 8-bit floats", marks=needs("torchao")),
    pytest.param("qat-int8", "nothing was rounded in a step", marks=needs("torchao")),
    ("compile", "of which 0 were called in a step of 1 micro-batches"),
    ("warmup8", "the first updates were at the rates 0.0003, 0.0003"),
    pytest.param("lora8", "all 33440 parameters were trained", marks=needs("peft")),
    ("sgd", "the optimizer keeps 66880 elements, not 33440"),
    ("adamw-loop", "the update ran aten._fused_adamw_"),
    ("adamw-foreach", "no operator aten._foreach_addcdiv_"),
    ("adafactor", "its second moment is not factored"),
    pytest.param(
        "adam8bit",
        "state is 66880 of float32, not 49152 elements in 8 bits",
        marks=needs("torchao"),
    ),
    pytest.param(
        "adam8bit-bitsandbytes",
        "state is 66880 of float32, not 49152 elements in 8 bits",
        marks=needs("bitsandbytes"),
    ),
]


@pytest.fixture
def without_hooks(monkeypatch):
    real = build_module.chosen_techniques

    def stripped(combination):
        chosen = set(combination.techniques.values())
        nothing = {
            "model": lambda model, site: model,
            "loss": lambda loss, site: loss,
            "optimizer": lambda make, site: make,
            "loop": lambda loop, site: loop,
        }
        return [replace(one, **nothing) if one.name in chosen else one for one in real(combination)]

    monkeypatch.setattr(build_module, "chosen_techniques", stripped)


@pytest.mark.parametrize(("name", "told"), CHOICES)
def test_a_technique_that_does_nothing(measured, without_hooks, name, told):
    record = measured(name)
    assert record.outcome.kind == "invalid", record.outcome
    assert record.outcome.reason.startswith(f"{name} was not active: ")
    assert told in record.outcome.reason

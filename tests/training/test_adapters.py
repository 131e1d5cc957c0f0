"""Every rank draws the same adapters, and then what it would have drawn without them."""

import pytest
import torch
from torch import nn

from stepbench.training.build import build
from stepbench.training.techniques import parse
from tests.extras import needs
from tests.training.small import CPU, tiny

pytestmark = needs("peft")


def adapters_of(rank):
    # Without its own data parallelism a rank is only a number, by which it draws its dropout.
    loop, _ = build(tiny(), parse("lora4"), CPU, ranks=2, rank=rank)
    return [one for one in loop.model.parameters() if one.requires_grad]


def test_ranks_have_the_same_adapters_and_draw_apart():
    first, first_draws = adapters_of(0), torch.rand(8)
    second, second_draws = adapters_of(1), torch.rand(8)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(one.any() for one in first)
    assert not torch.equal(first_draws, second_draws)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_devices_generator_stays_at_its_ranks_seed(monkeypatch, rank):
    """What CUDA draws, dropout among it, was seeded before; a stand-in, since here is none."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    adapters_of(rank)
    assert seeds[-1] == tiny().seed + rank


def test_draws_after_them_are_those_without_them():
    build(tiny(), parse("baseline"), CPU)
    without = nn.functional.dropout(torch.ones(64))
    build(tiny(), parse("lora4"), CPU)
    assert torch.equal(nn.functional.dropout(torch.ones(64)), without)

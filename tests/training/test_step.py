"""The same mathematics gives the same training: against a loop written by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from stepbench.errors import StepbenchError
from stepbench.training import step as step_module
from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.step import micro_batches, plain_loop, train_step
from stepbench.training.techniques import parse
from stepbench.training.types import Plan, Site
from stepbench.training.workloads import load
from tests.training.small import CPU, by_hand, gradients_of, in_type, relative, tiny, trained

STEPS = 3


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-14)], ids=["fp32", "fp64"]
)
@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_accumulation_is_the_full_batch(micro, dtype, bound):
    workload = in_type(tiny(), dtype)
    parameters, gradients, _ = by_hand(workload, STEPS)
    ours, our_gradients = trained(workload, f"accum{micro}", STEPS)
    assert relative(our_gradients, gradients) <= bound
    # Adam's first steps are sign-like: a gradient near zero may turn a parameter by a step.
    assert relative(ours, parameters) <= 100 * bound


def test_unequal_micro_batches_weigh_by_their_terms():
    def ragged_loss(logits, targets):
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    workload = in_type(
        replace(tiny(), loss=ragged_loss, loss_terms=lambda targets: int((targets >= 0).sum())),
        torch.float64,
    )
    inputs, targets = next(Batches(workload, Plan()))
    targets[0, 3:] = targets[1, 9:] = targets[6, 1:] = -1  # micro-batches of unequal terms
    loop, site = build(workload, parse("accum4"), CPU)
    shares = [batch.share for batch, _ in micro_batches((inputs, targets), site)]
    assert shares == [12 / 93, 32 / 93, 32 / 93, 17 / 93]
    ours = []
    update = loop.update
    loop = replace(loop, update=lambda: (ours.extend(gradients_of(loop.model)), update()))
    train_step(loop, (inputs, targets), site)

    torch.manual_seed(workload.seed)
    model = workload.model()
    ragged_loss(model(inputs), targets).backward()
    assert relative(ours, gradients_of(model)) <= 1e-14


def test_a_batch_of_no_loss_terms_names_the_remedy():
    workload = replace(tiny(), loss_terms=lambda targets: int((targets < 0).sum()))
    _, site = build(workload, parse("accum2"), CPU)
    host = next(Batches(workload, Plan()))
    with pytest.raises(StepbenchError, match="count them by loss_terms="):
        list(micro_batches(host, site))


def test_without_the_division_the_gradient_is_n_times_as_large(monkeypatch):
    workload = tiny()
    _, right = trained(workload, "accum4", 1)
    real = step_module.micro_batches
    monkeypatch.setattr(
        step_module,
        "micro_batches",
        lambda host, site: ((replace(batch, share=1.0), last) for batch, last in real(host, site)),
    )
    _, wrong = trained(workload, "accum4", 1)
    assert relative(wrong, right) == pytest.approx(3.0, rel=1e-4)  # 4 times as large


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", ["ckpt1", "ckpt2", "ckpt-sqrt", "ckpt-selective"])
def test_checkpointing_is_bit_equal(name, dropout):
    workload = load(f"gpt-1m@seq=16,batch=4,dropout={dropout}")
    parameters, gradients = trained(workload, "baseline", STEPS)
    ours, our_gradients = trained(workload, name, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(our_gradients, gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, parameters, strict=True))


def test_checkpointing_and_accumulation_together_equal_accumulation():
    parameters, _ = trained(tiny(), "accum4", STEPS)
    ours, _ = trained(tiny(), "accum4+ckpt1", STEPS)
    assert all(torch.equal(a, b) for a, b in zip(ours, parameters, strict=True))


@pytest.mark.parametrize(("name", "bound"), [("bf16", 2e-2), ("fp16", 4e-3)])
def test_16_bit_gradients_are_near(name, bound):
    _, gradients, _ = by_hand(tiny(), 1)
    scale = 2.0**16 if name == "fp16" else 1.0
    _, ours = trained(tiny(), name, 1)
    assert relative([one / scale for one in ours], gradients) <= bound


def test_the_baseline_is_the_loop_by_hand_to_the_bit():
    parameters, gradients, _ = by_hand(tiny("dropout=0.1"), STEPS)
    ours, our_gradients = trained(tiny("dropout=0.1"), "baseline", STEPS)
    assert all(torch.equal(a, b) for a, b in zip(our_gradients, gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, parameters, strict=True))


def test_the_scaler_skips_on_inf_and_halves():
    loop, site = build(tiny(), parse("fp16"), CPU)
    batches = Batches(tiny(), Plan())
    before = [p.detach().clone() for p in loop.model.parameters()]
    forward = loop.forward
    infinite = replace(loop, forward=lambda batch: forward(batch) * math.inf)
    assert loop.loss_scale() == 65536.0
    train_step(infinite, next(batches), site)
    assert loop.loss_scale() == 32768.0
    assert all(torch.equal(a, b) for a, b in zip(loop.model.parameters(), before, strict=True))
    train_step(loop, next(batches), site)
    assert loop.loss_scale() == 32768.0
    assert not all(torch.equal(a, b) for a, b in zip(loop.model.parameters(), before, strict=True))


def test_scaling_brings_vanished_gradients_back():
    """Claims fp16-range and scaler-rescues: below 2^-24 a gradient is zero in float16."""

    def zeros(scale):
        weight = torch.full((64, 64), 0.5, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = (torch.full((1, 64), 1e-4) @ weight).float().mean() * 1e-4
        (loss * scale).backward()
        return float((weight.grad == 0).float().mean())

    assert zeros(1.0) == 1.0
    assert zeros(2.0**16) == 0.0


def test_clipping_comes_after_unscaling():
    workload, limit = tiny(), 0.05

    def clipped(**plan):
        site = Site(workload=workload, plan=Plan(max_grad_norm=limit, **plan), device=CPU)
        torch.manual_seed(workload.seed)
        model = workload.model()
        # SGD at rate 1: the update is the clipped gradient itself.
        loop = plain_loop(model, torch.optim.SGD(model.parameters(), lr=1.0), site)
        before = [p.detach().clone() for p in model.parameters()]
        train_step(loop, next(Batches(workload, Plan())), site)
        return [a - b for a, b in zip(before, model.parameters(), strict=True)]

    plain, scaled = clipped(), clipped(scale_loss=True)
    assert torch.cat([one.flatten() for one in scaled]).norm().item() == pytest.approx(limit, 1e-3)
    assert relative(scaled, plain) <= 1e-5


def test_data_are_a_function_of_seed_and_epoch():
    workload = load("gpt-tiny@batch=4096")  # seven batches an epoch
    batches = Batches(workload, Plan())
    first = [next(batches)[0] for _ in range(14)]
    again = Batches(workload, Plan())
    assert all(torch.equal(one, next(again)[0]) for one in first)
    epoch = len(workload.dataset()) // 4096
    assert epoch == 7
    assert not torch.equal(first[0], first[epoch])
    other = next(Batches(load("gpt-tiny@batch=4096,seed=1"), Plan()))[0]
    assert not torch.equal(first[0], other)


def test_windows_are_shifted_by_one_and_disjoint():
    data = tiny().dataset()
    inputs, targets = data[5]
    following, _ = data[6]
    assert inputs.shape == targets.shape == (16,)
    assert torch.equal(inputs[1:], targets[:-1])
    assert targets[-1] == following[0]


def test_the_loss_starts_at_chance_and_falls():
    _, _, losses = by_hand(load("gpt-1m@seq=32"), 30)
    assert losses[0] == pytest.approx(math.log(256), abs=0.3)
    assert losses[-1] < losses[0] - 1.0


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("gpt-1m", 1.0e6, 1.4e6), ("gpt-124m", 122e6, 126e6), ("gpt-1.5b", 1.4e9, 1.7e9)],
)
def test_names_say_the_number_of_parameters(name, low, high):
    with torch.device("meta"):
        model = load(name).model()
    assert low <= sum(p.numel() for p in model.parameters()) <= high


def test_a_block_keeps_its_place_under_checkpointing():
    workload = tiny()
    loop, _ = build(workload, parse("ckpt1"), CPU)
    blocks = workload.blocks(loop.model)
    assert all(isinstance(block, nn.Module) for block in blocks)
    assert [name for name, _ in loop.model.named_parameters()] == [
        name for name, _ in workload.model().named_parameters()
    ]

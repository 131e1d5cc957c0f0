"""Loss, gradient and update are judged where both sides hold the same parameters."""

import itertools
from dataclasses import replace

import pytest
import torch

from stepbench.measuring import subject
from stepbench.measuring.process import in_child
from stepbench.metrics.beside import LOSS_DIFFERENCE
from stepbench.stats import measures
from stepbench.training import build as build_module
from stepbench.training.data import Batches
from stepbench.training.types import Plan
from stepbench.training.workloads import load

RESNET = "tests.models.vision:resnet"


def test_chaos_after_several_updates_is_not_the_techniques(measured):
    """Weights nudged by bf16's rounding leave its tolerance in a plain fp32 loop, too."""
    record = measured("bf16", f"{RESNET}@rate=0.5")
    assert record.outcome.ok, record.outcome
    [one] = record.rounds
    assert measures.parity_difference(one.baseline, one.case) < 0.05 < LOSS_DIFFERENCE.of(record)
    assert "updates then drift apart by" in record.outcome.reason


def by_hand(name):
    """Losses of a plain forward pass over the first batches, all with the initial parameters."""
    workload = load(name)
    torch.manual_seed(workload.seed)
    model = workload.model()
    batches = itertools.islice(Batches(workload, Plan()), 3)
    return [workload.loss(model(images), labels).item() for images, labels in batches]


def test_the_first_steps_begin_at_the_initial_parameters(measured):
    """Without momentum the descent of SGD is minus the rate times the gradient's norm."""
    name = f"{RESNET}@rate=0.2,momentum=0"
    one = measured("baseline", name).rounds[0].case
    assert one.losses[:3] == pytest.approx(in_child(by_hand, name, deadline_s=60).answer, rel=1e-4)
    assert one.descents == pytest.approx([-0.2 * norm for norm in one.grad_norms[1:3]], rel=1e-4)


@pytest.mark.parametrize("combination", ["accum4", "bf16"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda optimizer: optimizer.param_groups[0].update(lr=6e-4),
        lambda optimizer: optimizer.param_groups[0].update(maximize=True),
        lambda optimizer: optimizer.param_groups[0].update(betas=(0.0, 0.999)),
    ],
    ids=["rate", "sign", "betas"],
)
def test_a_wrong_update_whose_loss_and_gradient_are_right(
    measured, monkeypatch, combination, wrong
):
    real = subject.build

    def updating_wrong(workload, chosen, device, **place):
        loop, site = real(workload, chosen, device, **place)
        if chosen.techniques:
            wrong(loop.optimizer)
        return loop, site

    monkeypatch.setattr(subject, "build", updating_wrong)
    outcome = measured(combination).outcome
    assert outcome.kind == "invalid"
    assert "update at the same parameters differs" in outcome.reason


def test_an_update_left_out(measured, monkeypatch):
    real = build_module.plain_loop

    def skipping(model, optimizer, site):
        loop, calls = real(model, optimizer, site), []

        def update():
            calls.append(1)
            if len(calls) == 2:
                optimizer.zero_grad()
            else:
                loop.update()

        return replace(loop, update=update) if site.plan.micro_batches > 1 else loop

    monkeypatch.setattr(build_module, "plain_loop", skipping)
    outcome = measured("accum2").outcome
    assert outcome.kind == "invalid"
    assert "update at the same parameters differs" in outcome.reason

"""BatchNorm under accumulation and checkpointing, shown for what it is."""

import math

import pytest
import torch

from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.step import train_step
from stepbench.training.techniques import other_mathematics, parse
from stepbench.training.types import Plan
from stepbench.training.workloads import load
from tests.training.small import CPU, by_hand, gradients_of, relative, trained


def by_hand_in_micro_batches(workload, micro):
    """One step's gradients by the plainest accumulation there is, and the model."""
    torch.manual_seed(workload.seed)
    model = workload.model()
    inputs, targets = next(Batches(workload, Plan()))
    for part, labels in zip(inputs.chunk(micro), targets.chunk(micro), strict=True):
        (workload.loss(model(part), labels) / micro).backward()
    return gradients_of(model), model


def running_statistics(model):
    return [buffer.clone() for name, buffer in model.named_buffers() if "running" in name]


def test_accumulation_equals_a_plain_loop_over_the_same_micro_batches():
    workload = load("cnn-tiny")
    expected, model = by_hand_in_micro_batches(workload, 4)
    _, ours = trained(workload, "accum4", 1)
    assert relative(ours, expected) <= 1e-6
    loop, site = build(workload, parse("accum4"), CPU)
    train_step(loop, next(Batches(workload, Plan())), site)
    assert relative(running_statistics(loop.model), running_statistics(model)) <= 1e-6


@pytest.mark.parametrize(
    ("norm", "low", "high"), [("batch", 0.2, math.inf), ("group", 0, 1e-5), ("none", 0, 1e-5)]
)
def test_only_batch_norm_is_far_from_the_full_batch(norm, low, high):
    workload = load(f"cnn-tiny@norm={norm}")
    _, full, _ = by_hand(workload, 1)
    _, ours = trained(workload, "accum4", 1)
    assert low <= relative(ours, full) <= high
    alone = other_mathematics(workload, parse("bf16+accum4+ckpt1"))
    assert str(alone) == ("accum4" if norm == "batch" else "baseline")


@pytest.mark.parametrize("name", ["ckpt1", "ckpt-sqrt", "ckpt-selective"])
def test_checkpointing_keeps_gradients_and_updates_running_statistics_twice(name):
    workload = load("cnn-tiny")
    _, full = trained(workload, "baseline", 1)
    _, ours = trained(workload, name, 1)
    assert all(torch.equal(a, b) for a, b in zip(ours, full, strict=True))

    loop, site = build(workload, parse(name), CPU)
    train_step(loop, next(Batches(workload, Plan())), site)
    seen = [b for n, b in loop.model.named_buffers() if n.endswith("num_batches_tracked")]
    # Known and documented: the recomputed forward counts a second time.
    assert max(int(count) for count in seen) == 2


def test_the_cnn_learns():
    _, _, losses = by_hand(load("cnn-tiny@batch=32"), 50)
    assert losses[-1] < losses[0] - 0.3

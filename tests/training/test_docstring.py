"""The workloads that `Workload`'s docstring shows are trained as they stand there."""

import doctest
import math
from inspect import isfunction

import pytest
import torch

from stepbench.measuring.probes.parity import Parity
from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.techniques import parse, tolerance
from stepbench.training.types import Workload
from tests.extras import needs
from tests.training.small import CPU

SHOWN = {"classifier": 8, "gpt2": 8 * 15, "t5": 8 * 16, "contrastive": 8}  # loss terms of a batch
OF_TRANSFORMERS = ("gpt2", "t5")


def shown():
    """What the examples define, by name; they must run without a failure."""
    [examples] = doctest.DocTestFinder().find(Workload, "Workload", globs={"Workload": Workload})
    failed, ran = doctest.DocTestRunner().run(examples, clear_globs=False)
    assert failed == 0
    assert ran >= len(SHOWN)
    return examples.globs


def test_all_of_them_are_tried():
    assert {name for name, one in shown().items() if isfunction(one)} == set(SHOWN)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs("transformers") if name in OF_TRANSFORMERS else ())
        for name in SHOWN
    ],
)
@pytest.mark.parametrize("combination", ["baseline", "bf16+accum2"])
def test_it_trains(name, combination):
    workload = shown()[name]()
    loop, site = build(workload, parse(combination), CPU)
    before = [one.detach().clone() for one in loop.model.parameters()]
    host = next(Batches(workload, site.plan))
    assert workload.loss_terms(host[1]) == SHOWN[name]
    parity = Parity()
    parity.observe(loop, host, site)
    assert math.isfinite(parity.losses[0])
    assert parity.grad_norms[0] > 0
    assert any(map(lambda a, b: not torch.equal(a, b), before, loop.model.parameters()))


def test_parts_of_a_contrastive_batch_are_not_judged_against_the_whole():
    assert tolerance(shown()["contrastive"](), parse("accum2")) == 0
    assert tolerance(shown()["classifier"](), parse("accum2")) > 0

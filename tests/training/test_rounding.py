"""Products in TF32 are told from float32's by their error, whichever of a step's they are."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from stepbench.measuring.probes.counters import count
from stepbench.measuring.probes.rounding import LOOKS, Rounding
from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.step import train_step
from stepbench.training.techniques import find, parse
from stepbench.training.techniques.precision import TF32_ERROR
from tests.training import own_workloads
from tests.training.small import CPU

MM, ADDMM = torch.ops.aten.mm.default, torch.ops.aten.addmm.default
CONVOLUTION = torch.ops.aten.convolution.default
LEAST_TERMS = 32


def in_tf32(tensor):
    """Rounded to a mantissa of 10 bits, as tensor cores round what they multiply."""
    return ((tensor.view(torch.int32) + 2**12) & ~(2**13 - 1)).view(torch.float32)


class TensorCores(TorchDispatchMode):
    """Products with a sum, over at least so many terms, in TF32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is ADDMM and args[1].shape[1] >= LEAST_TERMS:
            args = (args[0], *map(in_tf32, args[1:]))
        return func(*args, **(kwargs or {}))


def counters_of(workload):
    loop, site = build(workload, parse("baseline"), CPU)
    return count(loop, lambda of: train_step(of, next(Batches(workload, site.plan)), site))


def test_a_small_first_product_hides_no_later_one():
    fp32, tf32 = find("fp32")[1].proof, find("tf32")[1].proof
    exact = counters_of(own_workloads.plain())  # 16 features, then 32
    assert fp32(exact, None) is None
    assert "did not run in TF32" in tf32(exact, None)
    with TensorCores():
        rounded = counters_of(own_workloads.plain())
    assert tf32(rounded, None) is None
    assert "they ran in TF32" in fp32(rounded, None)


def worst(operator, arguments, result, **named):
    rounding = Rounding()
    rounding.look(operator, arguments, named, result)
    return rounding.worst


def one_after_another(left, right):
    """The float32 sum that errs most: every term added to all before it."""
    total = torch.zeros(len(left), right.shape[1])
    for k in range(left.shape[1]):
        total += left[:, k : k + 1] * right[k : k + 1]
    return total


def plain(terms):
    return torch.randn(64, terms), torch.randn(terms, 64)


def cancelling(terms):
    """Gradients that add up to nothing, over inputs that hardly differ."""
    left, right = plain(terms)
    return left - left.mean(1, keepdim=True), 5 + 1e-4 * right


@pytest.mark.parametrize("make", [plain, cancelling])
@pytest.mark.parametrize("terms", [10, 768, 50_304])
def test_true_float32_is_far_below_the_bound_and_tf32_far_above(make, terms):
    torch.manual_seed(0)
    left, right = make(terms)
    for product in (left @ right, one_after_another(left, right)):
        assert worst(MM, (left, right), product) < TF32_ERROR / 5
    assert worst(MM, (left, right), in_tf32(left) @ in_tf32(right)) > 5 * TF32_ERROR


def test_a_sum_counts_with_its_factors():
    torch.manual_seed(0)
    left, right = plain(300)
    added, factors = torch.randn(64), {"beta": 0.5, "alpha": 3.0}
    exact, rounded = (
        torch.addmm(added, change(left), change(right), **factors)
        for change in (lambda one: one, in_tf32)
    )
    assert worst(ADDMM, (added, left, right), exact, **factors) < TF32_ERROR / 5
    assert worst(ADDMM, (added, left, right), rounded, **factors) > 5 * TF32_ERROR


@pytest.mark.parametrize("bias", [None, 64])
def test_a_convolution_of_many_channels(bias):
    torch.manual_seed(0)
    images, layer = torch.randn(2, 64, 8, 8), nn.Conv2d(64, 64, 3, bias=bool(bias))
    options = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    exact, rounded = (
        functional.conv2d(change(images), change(layer.weight.detach()), layer.bias)
        for change in (lambda one: one, in_tf32)
    )
    arguments = (images, layer.weight, layer.bias, *options)
    assert worst(CONVOLUTION, arguments, exact) < TF32_ERROR / 5
    assert worst(CONVOLUTION, arguments, rounded) > 5 * TF32_ERROR


def test_products_of_zeros_are_passed_over_and_no_more_than_a_few_are_looked_at():
    left, right = plain(8)
    rounding, nothing = Rounding(), torch.zeros(64, 64)
    for _ in range(2 * LOOKS):
        rounding.look(MM, (torch.zeros(64, 8), right), {}, nothing)
    assert rounding.worst is None
    for _ in range(LOOKS):
        rounding.look(MM, (left, right), {}, left @ right)
    rounding.look(MM, (left, right), {}, nothing)
    assert rounding.worst < TF32_ERROR

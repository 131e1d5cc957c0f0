"""FLOPs of attention's kernels, by shapes alone: a CPU stands in for the GPUs that run them."""

import pytest
import torch

from stepbench.training.products import flops, recomputed_score_flops

BATCH, HEADS, LENGTH, OF_QUERY, OF_VALUE = 2, 3, 16, 8, 4
ONE_PRODUCT = 2 * BATCH * HEADS * LENGTH * LENGTH  # for each element of a head


def heads(size):
    return torch.empty(BATCH, HEADS, LENGTH, size, device="meta")


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn", "flash_for_cpu"])
def test_of_five_products_backward_one_is_of_scores_that_forward_has_had(kernel):
    name = "_scaled_dot_product_{}_attention{}_backward".format(
        kernel.partition("_")[0], "_for_cpu" if kernel.endswith("cpu") else ""
    )
    operator = getattr(torch.ops.aten, name).default
    gradient, query, key, value = (heads(n) for n in (OF_VALUE, OF_QUERY, OF_QUERY, OF_VALUE))
    given = operator, (gradient, query, key, value), {}, None
    assert flops(*given) == ONE_PRODUCT * (3 * OF_QUERY + 2 * OF_VALUE)
    assert recomputed_score_flops(*given) == ONE_PRODUCT * OF_QUERY


def test_other_products_compute_nothing_again():
    product = torch.ops.aten.mm.default, (torch.empty(2, 3), torch.empty(3, 4)), {}
    assert flops(*product, torch.empty(2, 4)) == 48
    assert recomputed_score_flops(*product, torch.empty(2, 4)) == 0

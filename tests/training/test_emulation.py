"""What a processor only emulates is told by a product, not by a deadline."""

import pytest
import torch

from stepbench.training.emulation import require_bearable
from stepbench.training.types import Unsupported


def product(size):
    factor = torch.ones(size, size)
    return lambda: factor @ factor


def test_an_absurd_product_is_unsupported_with_its_reason():
    with pytest.raises(Unsupported, match=r"^an emulated product takes [\d,]+ times a float32 one"):
        require_bearable("an emulated product", product(512), product(16))


def test_a_product_that_is_faster_is_borne():
    require_bearable("a product", product(16), product(512))

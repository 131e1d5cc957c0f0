"""How far float32 products are from float64's: about 1e-7, or 3e-4 where they ran in TF32.

Several products of each kind are looked at: small ones, as the first of a model often are, may run
in kernels that have no TF32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Products of each kind that are computed again, from the first on, and how many rows and columns of
# each: enough for an error.
LOOKS, CORNER = 8, 128


class Rounding:
    """The errors of the first float32 products of each kind that were not of zeros."""

    def __init__(self) -> None:
        self._errors: dict[Any, list[float]] = {kind: [] for kind in _ERRORS}

    def look(self, operator: Any, arguments: Any, named: Mapping[str, Any], result: Any) -> None:
        """Note the error of one call of a dispatched operator, if it is of such a kind."""
        seen = self._errors.get(operator)
        if seen is None or len(seen) >= LOOKS:
            return
        error = _ERRORS[operator](arguments, named, result)
        if not math.isnan(error):
            seen.append(error)

    @property
    def worst(self) -> float | None:
        """The largest of the errors; None where there was no product."""
        return max((one for seen in self._errors.values() for one in seen), default=None)


def _error(result: Tensor, exact: Tensor, squares: Tensor) -> float:
    """Relative to the exact result, or to the root of its terms' squares where that is larger.

    Terms that cancel, as those of a gradient behind a normalisation do, leave little more than
    their rounding: beside that any error would be large.
    """
    scale = torch.maximum(exact.norm(), squares.sum().sqrt())
    return float((result.double() - exact).norm() / scale)


def _of_product(arguments: Any, named: Mapping[str, Any], result: Tensor) -> float:
    left, right = arguments[0][:CORNER].double(), arguments[1][:, :CORNER].double()
    return _error(result[:CORNER, :CORNER], left @ right, left**2 @ right**2)


def _of_product_and_sum(arguments: Any, named: Mapping[str, Any], result: Tensor) -> float:
    added = named.get("beta", 1) * arguments[0].expand_as(result)[:CORNER, :CORNER].double()
    left = named.get("alpha", 1) * arguments[1][:CORNER].double()
    right = arguments[2][:, :CORNER].double()
    return _error(result[:CORNER, :CORNER], added + left @ right, left**2 @ right**2)


def _of_convolution(arguments: Any, named: Mapping[str, Any], result: Tensor) -> float:
    """Of the first image."""
    image, weight, bias, *options = arguments
    convolve = torch.ops.aten.convolution.default
    image, weight = image[:1].double(), weight.double()
    exact = convolve(image, weight, bias if bias is None else bias.double(), *options)
    return _error(result[:1], exact, convolve(image**2, weight**2, None, *options))


_ERRORS: dict[Any, Callable[[Any, Mapping[str, Any], Tensor], float]] = {
    torch.ops.aten.mm.default: _of_product,
    torch.ops.aten.addmm.default: _of_product_and_sum,
    torch.ops.aten.convolution.default: _of_convolution,
}

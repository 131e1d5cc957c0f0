"""The layers that adapters and quantization act on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from stepbench.training.types import Workload

# How peft names what it adds.
ADAPTER = "lora_"


def adaptable_layers(model: nn.Module, workload: Workload) -> dict[str, nn.Module]:
    """By name, the layers that LoRA can adapt, found by kind: those of the blocks, or of all the
    model where it names none; not the output layer that an embedding is tied to.
    """
    tied = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    layers = _layers(model, workload, lambda one: factors(one) is not None)
    return {name: one for name, one in layers.items() if id(one.weight) not in tied}


def factors(layer: nn.Module) -> tuple[int, int] | None:
    """What a rank of LoRA adds to a layer: elements before and behind it; None if it cannot be.

    Of Linear, of Hugging Face's Conv1D (a Linear whose weight is transposed) and of Conv2d.
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):
        weight: Any = layer.weight
        return weight.shape[0], weight.shape[1]
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return layer.weight[0].numel(), layer.out_channels
    return None


def linear_layers(model: nn.Module, workload: Workload) -> dict[str, nn.Linear]:
    """By name, those of the blocks, or of all the model where it names none; no adapters' own."""
    return _layers(model, workload, lambda one: isinstance(one, nn.Linear))


def _layers(
    model: nn.Module, workload: Workload, chosen: Callable[[nn.Module], bool]
) -> dict[str, Any]:
    names = {id(module): name for name, module in model.named_modules()}
    layers = {}
    for part in workload.blocks(model) or [model]:
        # torch's own attention reads the weights of its layers and never calls them.
        unheard = {
            id(inner)
            for module in part.modules()
            if isinstance(module, nn.MultiheadAttention)
            for inner in module.modules()
        }
        for module in part.modules():
            name = names[id(module)]
            if chosen(module) and id(module) not in unheard and ADAPTER not in name:
                layers[name] = module
    return layers

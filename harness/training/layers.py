"""The linear layers that adapters and quantization act on."""

from __future__ import annotations

from torch import nn

from harness.training.types import Workload

# How peft names what it adds.
ADAPTER = "lora_"


def linear_layers(model: nn.Module, workload: Workload) -> dict[str, nn.Linear]:
    """By name, those of the blocks, or of all the model where it names none; no adapters' own."""
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
            if isinstance(module, nn.Linear) and id(module) not in unheard and ADAPTER not in name:
                layers[name] = module
    return layers

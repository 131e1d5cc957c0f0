"""LoRA: what was trained before is frozen, and each chosen linear layer gains a product of two thin
matrices that is trained (Hu et al. 2021, arXiv:2106.09685), through peft.

Adapters stand on the linear layers and convolutions of the workload's blocks; on all of the model's
where it names no blocks, but never on the output layer alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

from stepbench.errors import StepbenchError
from stepbench.records.measurement import Counters
from stepbench.training.layers import adaptable_layers, factors
from stepbench.training.libraries import without_others
from stepbench.training.types import Axis, Plan, Site, Technique, Unsupported, as_it_is

# How the parts of attention are called in published models.
ATTENTION = re.compile(r"att(e?ntio)?n|query|key|value|qkv|[qkvo]_proj", re.IGNORECASE)


def _adapted(rank: int, *, attention_only: bool) -> Callable[[nn.Module, Site], nn.Module]:
    def edit(model: nn.Module, site: Site) -> nn.Module:
        layers = adaptable_layers(model, site.workload)
        if len(layers) == 1 and not site.workload.blocks(model):
            raise Unsupported(
                f"{site.workload.name} has no layer to adapt but its output's, "
                f"{next(iter(layers))}: that would be no LoRA"
            )
        if attention_only:
            layers = {name: layer for name, layer in layers.items() if ATTENTION.search(name)}
        if not layers:
            what = "layers of attention" if attention_only else "Linear, Conv1D or Conv2d layers"
            raise Unsupported(
                f"{site.workload.name} has no {what} to adapt, its output layer left out"
            )
        expected = sum(rank * sum(factors(one) or ()) for one in layers.values())
        _inject(model, rank, list(layers), site.workload.seed)
        trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
        assert trained == expected, f"{trained} parameters are trained, not {expected}"
        return model

    return edit


def _inject(model: nn.Module, rank: int, layers: list[str], seed: int) -> None:
    with without_others():
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
        # Every rank draws the same adapters, and draws after them as if there were none. peft makes
        # them on the CPU; `torch.manual_seed` would seed the device's generator for good.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            inject_adapter_in_model(config, model)


def _proof_adapters(counters: Counters, plan: Plan) -> str | None:
    if counters.trained_elements >= counters.elements:
        return f"all {counters.elements} parameters were trained: nothing was frozen"
    if counters.frozen_gradients:
        return f"{counters.frozen_gradients} frozen parameters had a gradient"
    return None


def _lora(word: str, where: str, *, attention_only: bool) -> Callable[[int], Technique]:
    def of_rank(rank: int) -> Technique:
        if rank < 1:
            raise StepbenchError(f"{word}{rank}: a rank must be at least 1")
        return Technique(
            name=f"{word}{rank}",
            about=f"train adapters of rank {rank} on {where}, and nothing else (peft)",
            imports=("peft",),
            model=_adapted(rank, attention_only=attention_only),
            proof=_proof_adapters,
            leaves_tensors=True,  # what adapters stand beside is frozen
            tolerance=lambda workload: None,
        )

    return of_rank


ADAPTERS = Axis(
    name="adapters",
    baseline="full-training",
    inside=True,
    examples=("full-training", "lora4", "lora8", "lora16", "lora32", "lora-attention8"),
    techniques=(
        Technique(
            name="full-training", about="all that the workload trains by itself", proof=as_it_is
        ),
    ),
    families={
        "lora": _lora(
            "lora", "every Linear, Conv1D and Conv2d layer of the blocks", attention_only=False
        ),
        "lora-attention": _lora(
            "lora-attention", "the blocks' attention layers", attention_only=True
        ),
    },
)

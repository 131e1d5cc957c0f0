"""No technique without a proof: each objects to a step in which nothing of it was done.

The step is a real one on a CPU, so that this holds for what only a GPU runs, too. Techniques that
are disabled underneath in whole measured cases are in `tests/measuring`.
"""

import functools
from dataclasses import replace

import pytest
import torch

from stepbench.measuring.probes.counters import count
from stepbench.measuring.probes.elements import elements
from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.step import train_step
from stepbench.training.techniques import AXES, find, parse, plan_of
from stepbench.training.types import as_it_is
from tests.training.small import CPU, tiny

# Baselines that leave everything to workload and torch: there is no opposite to see.
NOTHING_TO_PROVE = {"own-optimizer", "sdpa-auto", "full-training"}
NUMBERS = {"ckpt": 2, "accum": 2, "workers": 2, "prefetch": 4, "lora": 4, "clip": 1, "warmup": 4}
# The workload's own are these: a step without them is another's.
WITHOUT = {"sdpa-flash": "sdpa-math", "adamw-fused": "adamw-loop"}
# What the technique is about, where a plain step has none of it.
BESIDE = {"prefetch4": "workers2", "persistent": "workers2"}
LOADED = {"loader_processes": 2, "batches_ahead": 4}
ON_A_DEVICE = {"saved_bytes": 1000, "state_elements": {"float32": 1000}, "ranks": 2}
SHARDED_ALONE = {"sharded_parameters": 9, "group_ranks": 1, "ranks": 1}
# What is observed where a baseline was not left alone. The rest is seen in a real step.
OTHERWISE = {
    "local-batchnorm": {"operators": {"aten.batch_norm_gather_stats_with_counts": 1}},
    "eager": {"compiled_calls": 1},
    "single": {"collective_calls": {"all_reduce": 2}},
    "pageable": {"pinned": True},
    "prefetch2": {"batches_ahead": 8},
    "respawn": {"workers_survived": True},
    "workers0": {"loader_processes": 2},
    "on-device": {"saved_host_bytes": 10**9},
    "constant-rate": {"learning_rates": (1e-4, 2e-4)},
    "unquantized": {"matmul_flops": {"float8_e4m3fn": 1}},
    "threads1": {"ran_threads": 2},
}
OPPOSITES = {"ckpt0": "ckpt1", "accum1": "accum2", "fp32": "bf16"}


def catalogue():
    """Every technique that has a name, and one of each family."""
    for axis in AXES:
        yield from axis.techniques
        for word, make in axis.families.items():
            yield make(NUMBERS.get(word.partition("-")[0], 8))


@functools.cache
def counters_of(name):
    """What is counted in a real step of a combination, as a worker counts it."""
    torch.manual_seed(0)
    loop, site = build(tiny(), parse(name), CPU)
    batches = Batches(tiny(), site.plan)
    train_step(loop, next(batches), site)
    counted = count(loop, lambda of: train_step(of, next(batches), site))
    told = elements(loop, CPU)
    return replace(counted, **told, learning_rates=(3e-4,) * 5, epoch_batches=100)


def test_each_objects_to_a_step_without_it():
    silent = []
    for technique in catalogue():
        if technique.name in {axis.baseline for axis in AXES}:
            continue
        beside = BESIDE.get(technique.name)
        names = f"{technique.name}+{beside}" if beside else technique.name
        counters = counters_of(WITHOUT.get(technique.name, "baseline"))
        plain = replace(counters, ranks=2, **LOADED if beside else {})
        if technique.proof(plain, plan_of(parse(names))) is None:
            silent.append(technique.name)
    assert silent == []


def test_each_baseline_objects_to_a_step_that_is_not_left_alone():
    proofs = {axis.baseline: find(axis.baseline)[1].proof for axis in AXES}
    assert {name for name, proof in proofs.items() if proof is as_it_is} == NOTHING_TO_PROVE
    plain, plan = counters_of("baseline"), plan_of(parse("baseline"))
    silent = []
    for name, proof in proofs.items():
        if name in NOTHING_TO_PROVE:
            continue
        assert proof(plain, plan) is None, name
        if name == "unclipped":
            seen = replace(plain, applied_norm=plain.gradient_norm / 2)
        elif name in OPPOSITES:
            seen = counters_of(OPPOSITES[name])
        else:
            seen = replace(plain, **OTHERWISE[name])
        if proof(seen, plan) is None:
            silent.append(name)
    assert silent == []


def test_what_only_a_device_does_is_seen_by_its_own_counters():
    """Made by hand: a CPU has no other memory, and no second device."""
    plain = replace(counters_of("baseline"), **ON_A_DEVICE)
    seen = {
        "offload-activations": {"saved_host_bytes": 9000},
        "offload-optimizer": {"host_state_elements": 1000},
        "fsdp2-offload": {"host_state_elements": 1000, **SHARDED_ALONE},
        "dataparallel": {"replicas": 2},
        "pinned": {"pinned": True},
        "sync-batchnorm": {"operators": {"aten.batch_norm_gather_stats_with_counts": 1}},
        "tf32": {"matmul_error": 3e-4},
        "sdpa-efficient": {
            "operators": {"aten._scaled_dot_product_efficient_attention": 1}
        },
        "sdpa-cudnn": {"operators": {"aten._scaled_dot_product_cudnn_attention": 1}},
    }  # fmt: skip
    for name, what in seen.items():
        proof, plan = find(name)[1].proof, plan_of(parse(name))
        assert proof(replace(plain, **what), plan) is None, name
        assert proof(plain, plan), name


def test_a_part_of_it_is_not_enough():
    plain = replace(counters_of("baseline"), **ON_A_DEVICE)
    half_updated = {
        "updated_elements": 1000,
        "kept_elements": 1000,
        "state_elements": {"float32": 1000},
    }
    half_kept = {"gradient_elements": 2000, "updated_elements": 2000, "kept_elements": 1000}
    partly = {
        "offload-activations": {"saved_host_bytes": 500},
        "offload-optimizer": {"host_state_elements": 100},
        "fsdp2-offload": {"host_state_elements": 900, **SHARDED_ALONE},
        "dataparallel": {"replicas": 2, "ranks": 4},
        "ddp": {"ranks": 4, "group_ranks": 2, "collective_bytes": {"all_reduce": 10**9}},
        "bf16": {
            "matmul_flops": {"float32": 60, "bfloat16": 190},
            "batched_flops": {"bfloat16": 40},
        },
        "sgd": {"gradient_elements": 2000, **half_updated},
        "adamw-fused": {
            **half_updated,
            "gradient_elements": 2000,
            "state_elements": {"float32": 2000},
            "operators": {"aten._fused_adamw_": 1},
        },
        "adamw-loop": {
            **half_kept,
            "state_elements": {"float32": 2000},
            "operators": {"aten.addcdiv_": 1},
        },
        "adafactor": {**half_updated, "gradient_elements": 1000},
        "adam8bit": {"large_elements": 800, "state_elements": {"float32": 600, "uint8": 400}},
        "adam8bit-compiled": {"large_elements": 400, "state_elements": {"uint8": 800}},
        "warmup4": {
            "learning_rates": (1.0, 2.0, 3.0, 4.0, 4.0),
            "other_learning_rates": ((4.0,) * 5,),
        },
        "constant-rate": {"other_learning_rates": ((1.0, 2.0, 3.0, 4.0, 4.0),)},
        "fp32": {
            "matmul_flops": {"float32": 80, "bfloat16": 20},
            "batched_flops": {"bfloat16": 20},
        },
        "clip1": {"operators": {"aten.clamp": 1}, "gradient_norm": 9.0, "applied_norm": 9.0},
    }
    for name, what in partly.items():
        assert find(name)[1].proof(replace(plain, **what), plan_of(parse(name))), name


@pytest.mark.parametrize(
    "flops",
    [
        {"float32": 80, "bfloat16": 20},
        {"float32": 80, "float8_e4m3fn": 20},
    ],
)
def test_attention_that_torch_computes_in_32_bits_is_not_precisions(flops):
    seen = replace(counters_of("baseline"), matmul_flops=flops, loss_scale=1.0)
    bf16, plan = find("bf16")[1].proof, plan_of(parse("bf16"))
    assert bf16(replace(seen, batched_flops={"float32": 80}), plan) is None
    assert bf16(replace(seen, batched_flops={"float32": 50}), plan)


def test_what_shards_leave_in_host_memory_is_not_held_against_another_axis():
    seen = replace(counters_of("baseline"), **ON_A_DEVICE, host_state_elements=1000)
    on_device = find("on-device")[1].proof
    assert on_device(seen, plan_of(parse("fsdp2-offload"))) is None
    assert on_device(seen, plan_of(parse("fsdp2")))


def test_state_of_what_had_a_gradient_before_is_the_optimizers_too():
    """A block that did not run in the step that was counted, and did in another."""
    plain = counters_of("adamw-loop")
    fewer = replace(
        plain, updated_elements=plain.updated_elements // 2, gradient_elements=plain.elements // 2
    )
    for name, state in (("adamw-loop", 2 * plain.elements), ("adafactor", plain.elements // 50)):
        seen = replace(fewer, state_elements={"float32": state})
        assert find(name)[1].proof(seen, plan_of(parse(name))) is None, name

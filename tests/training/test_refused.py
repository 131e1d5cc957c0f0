"""What no machine can train as asked is refused in one line: value, why, and what to choose.

Here is what only GPUs would run; what a CPU could is walked in `test_pairs.py`.
"""

import pytest

from stepbench.records.case import Case
from stepbench.training.techniques import incompatible, parse
from stepbench.training.workloads import load

GPT = load("gpt-tiny")


def reason(combination, ranks=1):
    case = Case(workload="gpt-tiny", combination=parse(combination), ranks=ranks)
    return incompatible(GPT, case)


@pytest.mark.parametrize(
    ("combination", "ranks", "told"),
    [
        ("sync-batchnorm+ddp", 1, "on 1 rank is plain BatchNorm: choose 2 ranks or more"),
        ("ckpt1+dataparallel", 2, "dataparallel with ckpt1: checkpointing holds on to the blocks"),
        ("ckpt-sqrt+dataparallel", 2, "copies of them that run; choose ddp"),
        ("offload-activations+dataparallel", 2, "in threads of their own; choose ddp"),
        ("fp16+fsdp2-offload", 2, "fsdp2-offload with fp16: torch's gradient scaler does not wait"),
        ("ckpt-sqrt+fsdp2-offload", 2, "which sharding by block cannot gather"),
        ("offload-optimizer+adam8bit", 1, "offload-optimizer with adam8bit: torchao gives"),
        ("offload-optimizer+adam8bit-compiled", 1, "nothing to keep in 8 bits; choose adamw"),
        ("offload-optimizer+adam8bit-bitsandbytes", 1, "nothing to keep in 8 bits; choose adamw"),
    ],
)
def test_in_one_line(combination, ranks, told):
    line = reason(combination, ranks)
    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("combination", "ranks"),
    [
        ("sync-batchnorm+ddp", 2),
        ("bf16+accum2+dataparallel", 2),
        ("ckpt1+offload-activations+ddp", 2),
        ("bf16+fsdp2-offload", 2),
        ("fp16-unscaled+fsdp2-offload", 2),
        ("fp16+fsdp2", 2),
        ("offload-optimizer+adamw-fused", 1),
    ],
)
def test_what_is_near_it_is_not(combination, ranks):
    assert reason(combination, ranks) is None

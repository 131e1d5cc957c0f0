"""Every pair of techniques over all axes trains right on a CPU, or is refused in one line."""

import pytest

from stepbench.measuring.ranks import Group, Place
from stepbench.training.techniques import parse, plan_of
from tests.training.walking import CPU, Walk, installed, names, pairs, runs_here

CHUNKS = 3
# Refused although a CPU can run each alone; whatever else is refused lacks a device.
REFUSED_PAIRS = {
    "adafactor+zero2": "norms of rows, which shards do not hold whole",
    "adafactor+fsdp2": "norms of rows, which shards do not hold whole",
    "adam8bit-bitsandbytes+zero2": "take whole tensors, not shards",
    "adam8bit-bitsandbytes+fsdp2": "take whole tensors, not shards",
    "lora4+adam8bit": "8-bit state is for tensors of 4096 elements or more",
    "lora4+adam8bit-bitsandbytes": "8-bit state is for tensors of 4096 elements or more",
    "lora-attention8+adam8bit": "8-bit state is for tensors of 4096 elements or more",
    "lora-attention8+adam8bit-bitsandbytes": "8-bit state is for tensors of 4096",
    "accum2+ddp-static": "torch's static graph knows no no_sync()",
    "ckpt-sqrt+zero2": "which sharding by block cannot gather",
    "ckpt-sqrt+fsdp2": "which sharding by block cannot gather",
}
# Nothing but worker processes goes with these.
ABOUT_WORKERS = ("prefetch4", "persistent")


def walked(group_of=None, *, distributed, chunk=0, chunks=1):
    chosen = [
        pair
        for pair in pairs(names())
        if any(plan_of(parse(name)).distributed for name in pair) == distributed
        and all(map(installed, pair))
    ]
    walk = Walk(ranks=2 if group_of else 1, group=group_of).walk(chosen[chunk::chunks])
    return {"trained": walk.trained, "refused": walk.refused, "wrong": walk.wrong}


def on_a_rank(rank, file):
    group = Group(Place(rank=rank, ranks=2, file=file), CPU, deadline_s=240, host_tensors=False)
    return walked(group, distributed=True)


def right(answer):
    assert answer["wrong"] == {}
    for name, reason in answer["refused"].items():
        assert reason
        assert "\n" not in reason
        parts = name.split("+")
        if not all(map(runs_here, parts)):
            continue
        if "times a float32 one on this processor" in reason:
            continue
        if any(part in ABOUT_WORKERS for part in parts):
            assert "it is about worker processes; choose workersN with it" in reason
        else:
            assert REFUSED_PAIRS[name] in reason
    assert answer["trained"]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_on_one_rank(chunk):
    right(walked(distributed=False, chunk=chunk, chunks=CHUNKS))

"""Names become combinations: equal sets are equal, mistakes are named."""

import pytest

from stepbench.errors import StepbenchError
from stepbench.records.case import Case, Combination
from stepbench.training.techniques import (
    AXES,
    SPELLING_ORDER,
    chosen_techniques,
    find,
    incompatible,
    parse,
    tolerance,
)
from stepbench.training.techniques.checkpointing import square_root_segments
from stepbench.training.workloads import canonical, load

GPT = load("gpt-tiny")


def test_spelling_does_not_depend_on_the_order_given():
    assert str(parse("ckpt2+accum4+bf16")) == "bf16+accum4+ckpt2"
    assert parse("ckpt2+bf16") == parse("bf16+ckpt2")
    assert hash(parse("ckpt2+bf16")) == hash(parse("bf16+ckpt2"))


def test_other_names_are_accepted_and_spelled_alike():
    assert parse("zero3") == parse("fsdp2")
    assert str(parse("fsdp2-no-reshard")) == "zero2"


def test_baselines_are_accepted_and_dropped():
    assert parse("fp32+accum1+ckpt0") == parse("baseline") == Combination()
    assert str(parse("fp32+accum1")) == "baseline"
    assert parse("accum04") == parse("accum4")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fp17", "'fp17' is not a technique"),
        ("", "'' is not a technique"),
        ("bf16+", "'' is not a technique"),
        ("accum", "'accum' is not a technique"),
        ("accum0", "micro-batches must be at least 1"),
        ("accum-1", "'accum-1' is not a technique"),
        ("bf16+fp16", "both on the axis precision"),
        ("accum2+accum4", "both on the axis accumulation"),
    ],
)
def test_a_wrong_name_is_one_clear_line(text, told):
    with pytest.raises(StepbenchError, match=r"^[^\n]+$") as error:
        parse(text)
    assert told in str(error.value)


def test_names_are_unique_and_every_axis_is_spelled():
    names = [technique.name for axis in AXES for technique in axis.techniques]
    names += [other for axis in AXES for technique in axis.techniques for other in technique.also]
    names += [word for axis in AXES for word in axis.families]
    assert len(set(names)) == len(names)
    assert {axis.name for axis in AXES} == {axis.name for axis in SPELLING_ORDER}
    for axis in AXES:
        assert find(axis.baseline)[0] is axis
        assert {axis.baseline, *(one.name for one in axis.techniques)} <= set(axis.examples)
        assert all(find(name)[1].name == name for name in axis.examples)


def test_a_combination_has_one_technique_on_every_axis():
    names = [technique.name for technique in chosen_techniques(parse("bf16+accum4"))]
    assert names == [
        "local-batchnorm", "sdpa-auto", "full-training", "unquantized", "ckpt0", "eager",
        "own-optimizer", "on-device", "single", "threads1", "bf16", "unclipped", "constant-rate",
        "accum4", "workers0", "pageable", "prefetch2", "respawn",
    ]  # fmt: skip


def test_tolerances_add():
    alone = tolerance(GPT, parse("bf16")), tolerance(GPT, parse("accum4"))
    assert tolerance(GPT, parse("bf16+accum4")) == pytest.approx(sum(alone))
    assert tolerance(GPT, parse("ckpt1")) == 0.0


def test_what_does_not_divide_the_batch_is_refused():
    def reason(name, ranks=1):
        return incompatible(GPT, Case(workload="gpt-tiny", combination=parse(name), ranks=ranks))

    assert reason("accum4") is None
    assert "global batch of 8; choose N from 1, 2, 4, 8" in reason("accum3")
    assert reason("accum2+ddp", 4) is None
    assert "a rank's 2 samples of gpt-tiny's global batch of 8; choose N from 1, 2" in reason(
        "accum4+ddp", 4
    )
    assert "3 ranks do not divide gpt-tiny's global batch of 8; choose from 1" in reason("ddp", 3)


@pytest.mark.parametrize(
    ("blocks", "lengths"),
    [(1, [1]), (4, [2, 2]), (6, [3, 3]), (9, [3, 3, 3]), (12, [4, 4, 4]), (24, [5, 5, 4, 5, 5])],
)
def test_square_root_segments_are_contiguous_and_nearly_equal(blocks, lengths):
    segments = square_root_segments(blocks)
    assert [len(segment) for segment in segments] == lengths
    assert [index for segment in segments for index in segment] == list(range(blocks))


def test_a_workload_has_one_spelling():
    assert canonical("gpt-1m@seq=48") == "gpt-1m"
    assert canonical("gpt-1m@batch=4,seq=128") == "gpt-1m@seq=128,batch=4"


@pytest.mark.parametrize(
    "text",
    ["gpt", "gpt-1m@seq", "gpt-1m@seq=", "gpt-1m@seq=x", "gpt-1m@seq=0", "gpt-1m@dropout=1",
     "gpt-1m@width=8", "gpt-1m@seq=8,seq=8", "gpt-1m@batch=-1", "gpt-1m@seed=-1"],
)  # fmt: skip
def test_a_wrong_workload_is_one_clear_line(text):
    with pytest.raises(StepbenchError, match=r"^[^\n]+$"):
        load(text)

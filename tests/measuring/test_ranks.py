"""Real groups of gloo ranks: what each holds and exchanges, by arithmetic done by hand."""

from dataclasses import replace

import pytest
import torch

from stepbench.measuring import subject, team
from stepbench.measuring.measure import measure
from stepbench.measuring.settings import Settings
from stepbench.metrics.beside import LOSS_DIFFERENCE, SPEEDUP
from stepbench.records.case import Case
from stepbench.records.run import Record
from stepbench.training.techniques import parse

# gpt-tiny: 2 layers, width 32, vocabulary 256, sequences of 16; tied embeddings.
BLOCK = 4 * (12 * 32**2 + 2 * 32)
PARAMETERS = 4 * (256 * 32 + 16 * 32 + 32) + 2 * BLOCK
TENSORS = 3 + 6 * 2  # each with a step counter of 4 bytes in the optimizer's state
QUICK = Settings(rounds=1, extra_rounds=0, max_steps=3, min_steps=3)


@pytest.fixture
def on_ranks(machine):
    def run(combination, ranks, workload="gpt-tiny", **options) -> Record:
        case = Case(workload=workload, combination=parse(combination), ranks=ranks, **options)
        return measure(case, QUICK, machine)

    return run


def ok(record):
    assert record.outcome.ok, (record.outcome, record.outcome.traceback)
    assert Record.from_json(record.to_json()) == record
    return record.rounds[0].case


@pytest.mark.parametrize("ranks", [2, 4])
def test_ddp_saves_nothing_and_reduces_every_gradient_once(on_ranks, ranks):
    one = ok(on_ranks("ddp", ranks))
    for rank in one.ranks:
        assert rank.memory.parameter_bytes == rank.memory.gradient_bytes == PARAMETERS
        assert rank.memory.optimizer_bytes == 2 * PARAMETERS + 4 * TENSORS
        assert rank.collective_calls == {"all_reduce": 1}
        assert rank.collective_bytes == {"all_reduce": PARAMETERS}
    assert len(one.ranks) == ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_zero1_shards_optimizer_state_and_broadcasts_each_parameter(on_ranks, ranks):
    one = ok(on_ranks("zero1", ranks))
    for rank in one.ranks:
        assert rank.memory.parameter_bytes == rank.memory.gradient_bytes == PARAMETERS
        assert rank.collective_bytes == {"all_reduce": PARAMETERS, "broadcast": PARAMETERS}
    held = [rank.memory.optimizer_bytes for rank in one.ranks]
    assert sum(held) == 2 * PARAMETERS + 4 * TENSORS
    # Whole tensors are dealt out: no rank is a largest tensor above its part.
    assert max(held) - 2 * PARAMETERS / ranks < 2 * 4 * 256 * 32


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("name", "gathers"), [("zero2", 1), ("fsdp2", 2)])
def test_fsdp_holds_a_share_and_gathers_and_scatters_by_block(on_ranks, name, gathers, ranks):
    one = ok(on_ranks(name, ranks))
    for rank in one.ranks:
        assert rank.memory.parameter_bytes == rank.memory.gradient_bytes == PARAMETERS // ranks
        assert rank.memory.optimizer_bytes == 2 * PARAMETERS // ranks + 4 * TENSORS
        # The root's parameters once; a block's before forward, and where resharded before backward.
        assert rank.collective_calls == {"all_gather": 1 + 2 * gathers, "reduce_scatter": 3}
        assert rank.collective_bytes == {
            "all_gather": PARAMETERS + (gathers - 1) * 2 * BLOCK,
            "reduce_scatter": PARAMETERS,
        }


def test_bf16_halves_what_fsdp_gathers_and_not_what_it_reduces(on_ranks):
    one = ok(on_ranks("bf16+zero2", 2))
    assert one.counters.collective_bytes == {
        "all_gather": PARAMETERS // 2,
        "reduce_scatter": PARAMETERS,
    }


@pytest.mark.parametrize("name", ["ddp", "zero1", "fsdp2"])
def test_accumulation_reduces_once_a_step(on_ranks, name):
    one, four = ok(on_ranks(name, 2)), ok(on_ranks(f"accum4+{name}", 2))
    for kind in {"all_reduce", "reduce_scatter"} & one.counters.collective_calls.keys():
        assert four.counters.collective_calls[kind] == one.counters.collective_calls[kind]
    assert four.counters.forwards == 4


def test_the_slowest_rank_and_the_fullest_count(on_ranks):
    one = ok(on_ranks("zero1", 2))
    assert one.window_s == max(rank.window_s for rank in one.ranks)
    peaks = [rank.memory.steady_step.allocated_bytes for rank in one.ranks]
    assert one.memory.steady_step.allocated_bytes == max(peaks)
    first = [rank.memory.first_step.allocated_bytes for rank in one.ranks]
    assert one.memory.first_step.allocated_bytes == max(first)
    assert one.tokens == 8 * 16
    assert 0 < one.communication.exposed_s <= one.communication.running_s
    assert one.communication.running_s < one.communication.step_s


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "fsdp2"])
def test_a_group_of_one(on_ranks, name):
    one = ok(on_ranks(name, 1))
    assert one.memory.parameter_bytes == PARAMETERS
    assert one.counters.group_ranks == 1


@pytest.mark.parametrize(
    "name",
    [
        "ddp-bucket-view",
        "ddp-static",
        "fp16+ddp",
        "fp16+zero1",
        "fp16+fsdp2",
        "bf16+accum2+ckpt1+ddp",
        "bf16+accum2+ckpt1+zero1",
        "bf16+accum2+ckpt1+fsdp2",
        "ckpt-selective+fsdp2",
        "ckpt2+zero2",
        "ckpt-sqrt+ddp",
        "ddp+workers2+persistent",
    ],
)
def test_compositions(on_ranks, name):
    ok(on_ranks(name, 2))


def test_weak_scaling_grows_the_batch_and_is_a_ratio_of_throughputs(on_ranks):
    record = on_ranks("ddp", 2, batch_factor=2)
    case, baseline = ok(record), record.rounds[0].baseline
    assert (case.tokens, baseline.tokens) == (2 * 8 * 16, 8 * 16)
    timed = replace(
        record.rounds[0],
        case=replace(case, step_s=(0.5,) * 3),
        baseline=replace(baseline, step_s=(0.1,) * 3),
    )
    speedup = SPEEDUP.of(replace(record, rounds=(timed,))).median
    assert speedup == pytest.approx(2 * 0.1 / 0.5)  # of twice the tokens


@pytest.mark.parametrize(
    ("name", "ranks", "told"),
    [
        ("baseline", 2, "2 ranks need a data-parallel technique"),
        ("ddp", 3, "3 ranks do not divide gpt-tiny's global batch of 8"),
        ("ckpt-sqrt+fsdp2", 2, "which sharding by block cannot gather"),
        ("accum2+ddp-static", 2, "torch's static graph knows no no_sync()"),
        ("sync-batchnorm+ddp", 2, "sync-batchnorm needs GPUs"),
        ("fsdp2-offload", 2, "a CPU has no other memory"),
        ("dataparallel", 2, "needs two GPUs, of which there are 0"),
    ],
)
def test_what_cannot_run_says_why(on_ranks, name, ranks, told):
    record = on_ranks(name, ranks)
    assert (record.outcome.kind, record.rounds) == ("unsupported", ())
    assert told in record.outcome.reason


def test_more_ranks_than_gpus(machine):
    gpu = {"name": "H200", "memory_bytes": 2**37, "capability": "9.0", "bf16": True}
    case = Case(workload="gpt-tiny", combination=parse("ddp"), ranks=2)
    outcome = measure(case, QUICK, machine | {"gpus": [gpu]}).outcome
    assert outcome.kind == "unsupported"
    assert outcome.reason.startswith("2 ranks need as many GPUs; this sweep holds 1")


OWN = "tests.training.own_workloads"


def test_ranks_with_unequal_loss_terms(on_ranks):
    told = on_ranks("ddp", 2, f"{OWN}:ragged").outcome
    assert told.kind == "failed"
    assert "say so by Workload(uneven_terms=True)" in told.reason
    ok(on_ranks("ddp", 2, f"{OWN}:ragged_and_said_so"))
    ok(on_ranks("accum2+fsdp2", 2, f"{OWN}:ragged_and_said_so"))


def test_batchnorm_over_ranks_is_other_mathematics(on_ranks):
    record = on_ranks("ddp", 2, "cnn-tiny")
    ok(record)
    assert LOSS_DIFFERENCE.of(record) > 1e-3
    told = "loss not judged: it is other mathematics than the baseline"
    assert record.outcome.reason == told


@pytest.mark.parametrize("name", ["zero1", "fsdp2"])
def test_sharding_is_judged_against_ddp_where_ranks_are_other_mathematics(
    on_ranks, monkeypatch, name
):
    record = on_ranks(name, 2, "cnn-tiny")
    ok(record)
    assert record.outcome.reason == "loss judged against ddp-unused on 2 ranks"
    real = subject.build

    def reseeded(workload, combination, *arguments, **place):
        seed = workload.seed + (combination.techniques.get("parallel") == name)
        return real(replace(workload, seed=seed), combination, *arguments, **place)

    monkeypatch.setattr(subject, "build", reseeded)
    outcome = on_ranks(name, 2, "cnn-tiny").outcome
    assert outcome.kind == "invalid"
    assert "differs from ddp-unused on 2 ranks's by" in outcome.reason


def test_counts_repeat_in_many_processes(machine):
    """A backend's thread may hold what was gathered for longer than a step does."""
    case = Case(workload="gpt-tiny", combination=parse("fsdp2"), ranks=2)
    settings = replace(QUICK, rounds=8, max_steps=1, min_steps=1)
    ok(measure(case, settings, machine))


def test_more_ranks_than_processors_are_told(on_ranks, monkeypatch):
    monkeypatch.setattr(team.os, "sched_getaffinity", lambda _: {0})
    told = "2 ranks shared 1 processors: as many devices would be faster"
    assert on_ranks("ddp", 2).outcome.reason == told


def test_without_blocks_all_is_one_group(on_ranks):
    gathers = {
        name: ok(on_ranks(name, 2, f"{OWN}:plain")).counters.collective_calls["all_gather"]
        for name in ("zero2", "fsdp2")
    }
    assert gathers == {"zero2": 1, "fsdp2": 2}


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "fsdp2", "accum2+fsdp2"])
def test_frozen_blocks_and_a_tiny_head(on_ranks, name):
    ok(on_ranks(name, 2, f"{OWN}:frozen"))


@pytest.mark.parametrize(
    ("name", "workload", "told"),
    [
        ("fsdp2", "tied_blocks", "shares weights between a block and the rest"),
        ("zero1", "two_groups", "zero1 shards one group of parameters; "),
        ("zero1", "one_tensor", "there are fewer of them than ranks"),
    ],
)
def test_what_a_model_cannot_be_is_unsupported(on_ranks, name, workload, told):
    outcome = on_ranks(name, 2, f"{OWN}:{workload}").outcome
    assert outcome.kind == "unsupported", outcome
    assert told in outcome.reason


def test_a_reference_that_gives_no_number_is_told_as_such(on_ranks, monkeypatch):
    real = subject.build

    def failing(workload, combination, *arguments, **place):
        if combination.techniques == {"accumulation": "accum2"}:
            raise torch.OutOfMemoryError("no room")
        return real(workload, combination, *arguments, **place)

    monkeypatch.setattr(subject, "build", failing)
    outcome = on_ranks("ddp", 2, batch_factor=2).outcome
    assert outcome.kind == "failed"
    told = "what its loss is held against gave no number: accum2, global batch x2 oom in build"
    assert outcome.reason.startswith(told)

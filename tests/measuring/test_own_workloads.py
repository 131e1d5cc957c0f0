"""A stranger's workload goes through every axis, with the right outcome for each."""

import pytest

from stepbench.errors import StepbenchError
from stepbench.metrics.beside import LOSS_DIFFERENCE
from stepbench.training.workloads import canonical, load

OWN = "tests.training.own_workloads"
WITHOUT_BLOCKS = ("plain", "dictionary", "pair")


@pytest.mark.parametrize("name", [*WITHOUT_BLOCKS, "ragged"])
@pytest.mark.parametrize("combination", ["bf16", "accum4", "workers2", "ckpt1", "ckpt-selective"])
def test_every_axis(measured, name, combination):
    record = measured(combination, f"{OWN}:{name}")
    if combination.startswith("ckpt") and name in WITHOUT_BLOCKS:
        assert record.outcome.kind == "unsupported"
        assert "names no repeated blocks" in record.outcome.reason
    else:
        assert record.outcome.ok, record.outcome
        assert LOSS_DIFFERENCE.of(record) < 0.05


def test_the_record_names_the_file_and_the_data(measured):
    environment = measured("baseline", f"{OWN}:plain").rounds[0].case.environment
    assert len(environment["workload_digest"]) == 16
    assert environment["data_digest"].startswith("first samples sha256 ")


def test_parameters_reach_the_function():
    assert load(f"{OWN}:plain@batch=16").global_batch == 16
    assert canonical(f"{OWN}:plain@batch=16") == f"{OWN}:plain@batch=16"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no.such.module:thing", "ModuleNotFoundError: No module named 'no'"),
        (f"{OWN}:missing", "has no attribute 'missing'"),
        (f"{OWN}:nothing", "is int, not a Workload"),
        (f"{OWN}:nothing@x=1", "takes no parameters"),
        (f"{OWN}:lacking", "missing 2 required keyword-only arguments: 'dataset' and 'loss'"),
        (f"{OWN}:plain@size=3", "unexpected keyword argument 'size'"),
        (f"{OWN}:plain@batch=0", "global_batch must be at least 1"),
        (f"{OWN}:", "has no attribute ''"),
    ],
)
def test_a_workload_that_is_none_is_one_clear_line(name, told):
    with pytest.raises(StepbenchError, match=r"^[^\n]+$") as error:
        load(name)
    assert told in str(error.value)


def test_a_loss_that_is_not_a_number(measured):
    outcome = measured("baseline", f"{OWN}:not_a_number").outcome
    assert (outcome.kind, outcome.reason) == (
        "invalid",
        "step 1 had loss nan and gradient norm nan",
    )


def test_a_batch_that_cannot_be_split(measured):
    outcome = measured("baseline", f"{OWN}:text_in_the_batch").outcome
    assert outcome.kind == "failed"
    assert "must hold tensors whose first dimension is its 8 samples" in outcome.reason


@pytest.mark.parametrize("name", ["linear_blocks", "shared_activation", "called_by_keyword"])
def test_every_block_that_is_checkpointed_is_seen(measured, name):
    record = measured("ckpt1", f"{OWN}:{name}")
    assert record.outcome.ok, record.outcome
    assert record.rounds[0].case.counters.recomputed_blocks == (2, 1, 0)


def test_dropout_in_the_model_is_seen(measured):
    record = measured("accum4", f"{OWN}:with_dropout")
    assert record.outcome.ok, record.outcome
    assert LOSS_DIFFERENCE.of(record) > 1e-3

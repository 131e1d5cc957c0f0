"""Threads of a CPU's operators: really used, the same loss, and never more than there are cores."""

from dataclasses import replace

import pytest
import torch

from stepbench.errors import StepbenchError
from stepbench.measuring import subject
from stepbench.measuring.measure import measure
from stepbench.measuring.pairs import PairedRunner, PairFailed
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import open_sweep
from stepbench.metrics.beside import LOSS_DIFFERENCE
from stepbench.records.case import Case
from stepbench.records.pair import Side
from stepbench.training import build as build_module
from stepbench.training.techniques import find, parse, unsupported
from tests.measuring.conftest import QUICK
from tests.synthetic import MACHINE

TWO = replace(QUICK, threads=2)
H200 = {"name": "H200", "memory_bytes": 2**37, "capability": "9.0", "bf16": True}


def of(one):
    """Threads by torch, wanted, and seen."""
    return one.environment["threads"], one.counters.threads, one.counters.ran_threads


@pytest.mark.parametrize(
    ("name", "workload"),
    [("threads2", "gpt-1m@seq=32"), ("threads2", "cnn-tiny"), ("ddp+threads2", "gpt-tiny")],
)
def test_two_threads_train_what_one_does(measured, name, workload):
    record = measured(name, workload)
    assert record.outcome.ok, record.outcome
    [one] = record.rounds
    assert (of(one.case), of(one.baseline)) == ((2, 2, 2), (1, 1, 1))
    assert LOSS_DIFFERENCE.of(record) <= find("threads2")[1].tolerance(None)


def test_the_run_sets_the_baselines_threads_too(measured):
    [one] = measured("bf16", settings=TWO).rounds
    assert of(one.case) == of(one.baseline) == (2, 2, 2)


def test_threads_that_did_not_run_are_a_wrong_number(measured, monkeypatch):
    monkeypatch.setattr(subject, "_set_threads", lambda number: torch.set_num_threads(1))
    outcome = measured("threads2").outcome
    assert outcome.kind == "invalid"
    told = "threads2 was not active: operators ran on 1 threads, not on 2"
    assert outcome.reason == told


def test_a_workload_that_sets_threads_itself_is_told_of_the_option(measured, monkeypatch):
    real = build_module.plain_loop

    def setting(*arguments):
        torch.set_num_threads(2)
        return real(*arguments)

    monkeypatch.setattr(build_module, "plain_loop", setting)
    outcome = measured("baseline").outcome
    assert outcome.kind == "invalid"
    assert (
        "operators ran on 2 threads, not on 1: the run's number of threads sets" in outcome.reason
    )


@pytest.mark.parametrize(
    ("name", "ranks", "settings", "told"),
    [
        ("threads4", 1, QUICK, "threads4 needs 4 cores, of which there are 2"),
        ("ddp+threads2", 2, QUICK, "2 ranks of 2 threads need 4 cores; there are 2"),
        ("ddp", 2, TWO, "2 ranks of 2 threads need 4 cores; there are 2"),
    ],
)
def test_more_threads_than_cores_are_unsupported(machine, name, ranks, settings, told):
    case = Case(workload="gpt-tiny", combination=parse(name), ranks=ranks)
    record = measure(case, settings, machine | {"cores": 2})
    assert (record.outcome.kind, record.outcome.reason) == ("unsupported", told)


def test_a_gpu_has_no_such_threads():
    case = Case(workload="gpt-tiny", combination=parse("threads2"))
    assert "here they run on the GPU" in unsupported(case, MACHINE | {"gpus": [H200]})


def test_a_run_on_other_threads_is_not_continued(tmp_path):
    files = {open_sweep(tmp_path, one, project=tmp_path).path for one in (QUICK, QUICK, TWO)}
    assert len(files) == 2


def test_no_threads_are_a_mistake():
    with pytest.raises(StepbenchError, match="at least 1 thread"):
        Settings(threads=0)
    with pytest.raises(StepbenchError, match="at least 1 thread"):
        parse("threads0")


def test_both_sides_of_a_pair_run_on_the_threads_of_the_settings(machine, monkeypatch):
    real, side = subject.Subject.prepare, Side(case=Case(workload="gpt-tiny"))

    def prepare(subject):
        if torch.get_num_threads() != 2:
            raise StepbenchError("a paired process had other threads")
        return real(subject)

    monkeypatch.setattr(subject.Subject, "prepare", prepare)
    with PairedRunner(side, side, machine, TWO) as runner:
        assert {of(runner.measurement(role)) for role in ("reference", "candidate")} == {(2, 2, 2)}
        assert runner.pair("ping-pong", "reference first").reference
    with (
        PairedRunner(side, side, machine, QUICK) as runner,
        pytest.raises(PairFailed, match="other threads"),
    ):
        runner.pair("ping-pong", "reference first")

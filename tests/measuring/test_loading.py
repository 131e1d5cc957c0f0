"""How data are loaded is measured and proved; what was not so is invalid."""

import pytest

from stepbench.training import data
from stepbench.training.techniques import loading


@pytest.mark.parametrize(
    ("name", "processes", "ahead", "survived"),
    [
        ("baseline", 0, 0, False),
        ("workers2", 2, 4, False),
        ("workers2+prefetch4", 2, 8, False),
        ("workers3+persistent", 3, 6, True),
    ],
)
def test_what_loaded_is_observed(measured, name, processes, ahead, survived):
    record = measured(name)
    assert record.outcome.ok, record.outcome
    one = record.rounds[0].case
    assert one.counters.loader_processes == processes
    assert one.counters.batches_ahead == ahead
    assert one.counters.workers_survived == survived
    assert not one.counters.pinned
    assert len(one.data_wait_s) == len(one.step_s)
    assert all(0 <= wait <= step for wait, step in zip(one.data_wait_s, one.step_s, strict=True))
    assert one.epoch_pause_s > 0
    assert one.host_bytes > 10 * 2**20


def test_decoding_in_the_training_process_is_waited_for(measured):
    alone = measured("baseline", "cnn-tiny").rounds[0].case
    # Eight photographs are decoded for every step of a tiny CNN: most of it is waiting.
    assert sum(alone.data_wait_s) > 0.3 * sum(alone.step_s)


@pytest.mark.parametrize("name", ["persistent", "prefetch4"])
def test_what_needs_workers_says_so(measured, name):
    outcome = measured(name).outcome
    assert outcome.kind == "unsupported"
    assert "choose workersN with it" in outcome.reason


def test_pinning_on_a_cpu_is_unsupported(measured):
    assert "a CPU has none to copy to" in measured("pinned").outcome.reason


def without(option):
    real = data.DataLoader

    def loader(*arguments, **named):
        named.pop(option, None)
        if option == "num_workers":
            named.pop("prefetch_factor", None)
            named.pop("persistent_workers", None)
        return real(*arguments, **named)

    return loader


@pytest.mark.parametrize(
    ("name", "option", "told"),
    [
        ("workers2", "num_workers", "workers2 was not active: 0 worker processes"),
        ("workers2+prefetch4", "prefetch_factor", "prefetch4 was not active: 4 batches"),
        ("workers2+persistent", "persistent_workers", "persistent was not active: workers ended"),
    ],
)
def test_an_option_that_never_reached_the_loader(measured, monkeypatch, name, option, told):
    monkeypatch.setattr(data, "DataLoader", without(option))
    outcome = measured(name).outcome
    assert outcome.kind == "invalid"
    assert told in outcome.reason


def test_a_worker_that_dies_is_told(measured, monkeypatch):
    import os

    class Deadly(data._Signed):
        def __call__(self, samples):
            os._exit(3)

    monkeypatch.setattr(data, "_Signed", Deadly)
    outcome = measured("workers1").outcome
    assert outcome.kind == "failed"
    assert "its baseline" in outcome.reason or "worker" in outcome.reason


def test_the_default_prefetch_is_torchs():
    import torch

    from stepbench.training.workloads import load

    loader = torch.utils.data.DataLoader(load("gpt-tiny").dataset(), num_workers=1)
    assert loader.prefetch_factor == loading.DEFAULT_PREFETCH

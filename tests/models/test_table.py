"""The committed table of outcomes is whole, its page is its own, and what is invalid is shown."""

from pathlib import Path

import pytest

from stepbench.measuring.sweep import this_machine
from stepbench.records.machine import device_type
from tests.models import table
from tests.models.explained import EXPLAINED
from tests.models.table import MODELS, TECHNIQUES

FILES = [*(Path(__file__).parents[2] / "results" / "models").glob("*/outcomes.jsonl")]
CASES = {(model, technique) for model in MODELS for technique in TECHNIQUES}
MEASURED_LIVE = [
    ("two losses", "accum2"),
    ("gradient penalty", "bf16"),
    ("never-used parameters", "ddp"),
]


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.parts[-2])
def file(request):
    return request.param


def test_a_table_is_committed():
    assert FILES


def test_every_model_has_an_outcome_under_every_technique(file):
    assert len(MODELS) >= 24
    assert set(table.outcomes(file)) == CASES


def test_what_is_not_ok_says_why(file):
    for case, (kind, reason) in table.outcomes(file).items():
        assert kind == "ok" or reason, case


def test_what_is_invalid_is_shown_by_a_plain_loop(file):
    invalid = {case for case, (kind, _) in table.outcomes(file).items() if kind == "invalid"}
    assert invalid == set(EXPLAINED)


def test_the_page_is_made_of_the_journal(file):
    assert file.with_name("README.md").read_text(encoding="utf-8") == table.page(file)


@pytest.mark.parametrize(
    "shown", dict.fromkeys(EXPLAINED.values()), ids=lambda shown: shown.__name__
)
def test_a_plain_loop_shows_it_too(shown):
    difference, allowed = shown()
    assert difference > allowed


@pytest.mark.parametrize(("model", "technique"), MEASURED_LIVE)
def test_a_case_ends_as_it_did(file, model, technique):
    measured_on = device_type(table.header(file)["machine"])
    if device_type(this_machine()) != measured_on:
        pytest.skip(f"the table is of a {measured_on}")
    assert table.outcome_of(model, technique).kind == table.outcomes(file)[model, technique][0]


def test_only_what_is_missing_or_named_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table, "MODELS", {"partly frozen": MODELS["partly frozen"]})
    monkeypatch.setattr(table, "TECHNIQUES", ("bf16", "ckpt1"))
    monkeypatch.setattr(table.compiling, "BACKEND", "inductor")  # put back at the end
    monkeypatch.setattr(table, "_load_slow_libraries", lambda: None)

    def measured(*named):
        table.main([*(f"--again={one}" for one in named), "--results", str(tmp_path)])
        return [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]

    assert measured() == ["partly frozen, bf16", "partly frozen, ckpt1"]
    assert measured() == []
    assert measured("ckpt1") == ["partly frozen, ckpt1"]
    machine = tmp_path / "models" / this_machine()["name"]
    assert len(table.read(machine / "outcomes.jsonl")) == 2
    assert "| partly frozen | ok     | ok      |" in (machine / "README.md").read_text()

"""The catalogue of metrics: keys are unique, and ASV's thresholds follow from the gate's rows."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from asv.config import Config

from stepbench.history import project, suite
from stepbench.metrics.catalogue import COUNTS, METRICS
from stepbench.metrics.metric import BeyondSpread, Exact, Paired
from stepbench.metrics.time import ITEMS_PER_S, STEP_S
from tests.synthetic import case, measurement, record

ROOT = Path(__file__).resolve().parents[2]
# By how the gate judges a metric: the relative change that ASV calls a regression. Noise decides
# what is paired, so ASV's own threshold holds there.
ASV_THRESHOLDS = {Exact: [1e-9], BeyondSpread: [0.01], Paired: []}
TRACKED = [one for one in METRICS if one.asv]


def test_no_two_metrics_share_a_key():
    assert len({one.key for one in METRICS}) == len(METRICS) > 40


def test_units_are_in_the_keys():
    for one in METRICS:
        ends = {"seconds": "_s", "bytes": ("_bytes", "_bytes_per_step")}.get(one.unit)
        assert ends is None or one.key.endswith(ends), one.key
        assert suite.Measured.name_regex.match(f"measure_{one.key}") or not one.asv, one.key


@pytest.mark.parametrize("whose", ["ours", "of init"])
def test_asvs_thresholds_are_those_of_the_gates_rows(whose, tmp_path):
    path = ROOT / "asv.conf.json"
    if whose == "of init":
        path = tmp_path / "asv.conf.json"
        path.write_text(project.CONFIGURATION % '"train"', encoding="utf-8")
    given = Config.load(str(path)).regressions_thresholds
    for one in TRACKED:
        name = f"measure_{one.key}"
        found = [limit for pattern, limit in given.items() if re.match(pattern, name)]
        if type(one.gate) in ASV_THRESHOLDS:
            assert found == ASV_THRESHOLDS[type(one.gate)], one.key


def test_counts_are_what_asv_takes_every_change_of_for_a_step():
    assert set(COUNTS) == {"flops", "operators", "collectives", "graph_breaks", "recompiles"}


def test_a_figure_that_was_not_observed_is_no_number_to_asv():
    told = object.__new__(suite.RankCases)
    told.record = record(case("bf16"), [(measurement(), measurement())])
    assert math.isnan(told.measure_exposed_communication_s())
    assert told.measure_collectives() == 0
    assert told.measure_step_s() == {"samples": [pytest.approx(0.1)], "number": 1}


def test_a_new_definition_ends_only_its_own_series():
    class Own(suite.Cases):
        workload = "gpt-1m"

    suite.tracks(replace(STEP_S, revision=2))(Own)
    step_s, peak_bytes = (
        suite.Measured(f"Own.{name}", getattr(Own(), name), [getattr(Own(), name), Own()])
        for name in ("measure_step_s", "measure_peak_bytes")
    )
    assert peak_bytes.version == Own().version
    assert step_s.version == f"{Own().version}, revision 2"


def test_what_is_no_metric_of_asvs_is_refused():
    with pytest.raises(ValueError, match="tokens_per_s"):
        suite.tracks(ITEMS_PER_S)(suite.Cases)

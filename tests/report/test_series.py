"""Exponents of a series by hand: a power law is found again."""

from dataclasses import replace

import pytest

from stepbench.report import series, tables
from stepbench.stats import measures
from tests import synthetic


def of(names, seq, *, saved_bytes, step_s):
    """A record of `names` at a sequence length, with what its forward keeps and its step took."""
    one = synthetic.measurement((step_s,) * 3)
    one = replace(one, counters=replace(one.counters, saved_bytes=saved_bytes))
    case = synthetic.case(names, workload=f"gpt-1m@seq={seq},batch=1")
    return synthetic.record(case, [(one, one)] * 2)


LENGTHS = (128, 256, 512)
QUADRATIC = [of("bf16", n, saved_bytes=3 * n**2, step_s=1e-3 * n**1.5) for n in LENGTHS]


def test_a_power_law_is_found_again():
    assert measures.exponent([1, 2, 4, 8], [5, 10, 20, 40]) == pytest.approx(1.0)
    assert measures.exponent([1, 10], [7, 700]) == pytest.approx(2.0)


def test_cases_that_differ_in_one_parameter_are_a_series():
    linear = [of("fp16", n, saved_bytes=5 * n, step_s=1e-3 * n) for n in LENGTHS]
    first, second = series.series(synthetic.run_file([*QUADRATIC, *linear]))
    assert (first.workload, first.chosen) == ("gpt-1m@seq=…,batch=1", "bf16")
    assert (first.parameter, first.values) == ("seq", LENGTHS)
    assert first.memory_exponent == pytest.approx(2.0)
    assert first.time_exponent == pytest.approx(1.5)
    assert [second.memory_exponent, second.time_exponent] == pytest.approx([1.0, 1.0])


def test_two_values_or_wrong_numbers_are_no_series():
    assert series.series(synthetic.run_file(QUADRATIC[:2])) == []
    wrong = replace(QUADRATIC[0], outcome=synthetic.Outcome(kind="invalid", reason="no"))
    assert series.series(synthetic.run_file([wrong, *QUADRATIC[1:]])) == []


def test_a_report_shows_the_exponents_below_its_tables():
    file = synthetic.run_file(QUADRATIC)
    [row] = [line for line in tables.terminal(file).splitlines() if "seq=…" in line]
    assert row.split() == ["gpt-1m@seq=…,batch=1", "bf16", "128–512", "(3)", "2.00", "1.50"]
    assert "| 128–512 (3) |" in tables.markdown(file)
    [told] = tables.as_json(file)["series"]
    assert told["memory_exponent"] == pytest.approx(2.0)
    assert "~ n^" not in tables.terminal(synthetic.run_file(QUADRATIC[:1]))

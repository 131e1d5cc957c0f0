"""How often sweeps agree, and how often they should, by arithmetic done by hand."""

import math

import pytest

from stepbench.selfcheck import intervals
from tests.synthetic import case, measurement, record, run_file

BASE = measurement([0.1])


def of(speedups, name="bf16"):
    return record(case(name), [(measurement([0.1 / one]), BASE) for one in speedups])


def test_what_chance_promises_of_eight_rounds_is_combinatorics():
    """Of 16 values in random order, the second eight's median lies outside of the first eight's
    range on one side in between (4th above all) and (5th above all) of the C(16, 8) orders."""
    within, overlap = intervals.promised((8, 8), False)
    orders = math.comb(16, 8)
    fourth, fifth = (
        sum(math.comb(7 + before, before) for before in range(place)) / orders for place in (4, 5)
    )
    assert 1 - 2 * fifth < within < 1 - 2 * fourth
    assert overlap == pytest.approx(1 - 2 / orders, abs=5e-4)


def test_agreement_by_hand():
    first = of([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7])
    assert intervals.agreement(first, of([1.2] * 8)) == (True, True)
    assert intervals.agreement(first, of([1.6, *[1.8] * 7])) == (False, True)
    assert intervals.agreement(first, of([1.8] * 8)) == (False, False)


def test_the_page_counts_each_case_once_and_marks_what_left():
    first = run_file([of([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]), of([1.0] * 8, "fp16")])
    second = run_file([of([1.6, *[1.8] * 7]), of([1.0] * 8, "fp16")])
    text = intervals.rates([first, second])
    within, back, overlap = (line.split("|") for line in text.splitlines()[2:5])
    assert [cell.strip() for cell in within[2:4]] == ["2", "1: 50.0% [1.3%, 98.7%]"]
    assert [cell.strip() for cell in back[2:4]] == ["2", "1: 50.0% [1.3%, 98.7%]"]
    assert [cell.strip() for cell in overlap[2:4]] == ["2", "2: 100.0% [15.8%, 100.0%]"]
    shown = intervals.every_case([first, second])
    assert "**1.80x [1.60, 1.80]**" in shown
    assert shown.count("**") == 2

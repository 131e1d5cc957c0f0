"""What may be compared has one owner, and one form of refusal."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import stepbench
from stepbench import comparable
from stepbench.comparable import (
    case_difference,
    difference,
    differences,
    machine_difference,
    not_comparable,
    run_differences,
    version_difference,
)
from stepbench.versions import MEASURE_VERSION
from tests.synthetic import MACHINE, measurement, run

PACKAGE = Path(stepbench.__file__).parent


def test_the_first_key_is_named_with_both_values():
    old, new = {"a": 1, "b": 2, "c": None}, {"a": 1, "b": 3, "d": 4}
    assert difference(old, new) == "b: 2 against 3"
    assert differences(old, new) == ("b: 2 against 3", "d: None against 4")
    assert difference(old, new, ("a", "c")) is None


def test_one_form_of_refusal():
    assert not_comparable("a: 1 against 2") == "not comparable: a: 1 against 2"
    assert not_comparable("a: 1 against 2", "do b") == "not comparable: a: 1 against 2; do b"
    assert version_difference(MEASURE_VERSION, "x") is None
    assert version_difference(3, "x.json") == (
        f"measurement version: 3 in x.json against {MEASURE_VERSION} here"
    )


def test_nobody_else_spells_the_refusal():
    found = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"not comparable: \{|key\}: \{", path.read_text())
    ]
    assert found == ["comparable.py"]


@pytest.mark.parametrize("key", comparable.MACHINE)
def test_machines_differ_by_what_decides_a_number(key):
    other = {**MACHINE, key: "other"}
    assert machine_difference(MACHINE, other) == f"{key}: {MACHINE.get(key)} against other"
    assert set(run_differences(run(), run(machine=other))) == {"machine"}


@pytest.mark.parametrize("key", ["name", "memory_bytes"])
def test_hosts_of_one_kind_are_one_machine(key):
    assert machine_difference(MACHINE, {**MACHINE, key: "other"}) is None


@pytest.mark.parametrize(
    ("keys", "allowed_by"),
    [
        (comparable.WORK, set()),
        (comparable.COMES_ALONG, {"machine", "torch"}),
        (("workload_digest",), {"commit"}),
        (comparable.ON_A_CPU, set()),
    ],
)
def test_which_keys_of_a_process_must_be_equal(keys, allowed_by):
    old = measurement()
    for key in keys:
        new = replace(old, environment={**old.environment, key: "other"})
        assert case_difference(old, new, ()).endswith(" against other")
        for kind in comparable.KINDS:
            assert (case_difference(old, new, {kind}) is None) == (kind in allowed_by)

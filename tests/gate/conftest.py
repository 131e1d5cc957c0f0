"""Sides small enough to pair for real in half a second."""

import pytest

from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import this_machine
from stepbench.records.case import Case
from stepbench.records.pair import Side
from stepbench.training.techniques import parse

QUICK = Settings(rounds=1, max_steps=3, min_steps=3)


@pytest.fixture(scope="session")
def machine():
    return this_machine()


def side(combination: str = "baseline", workload: str = "gpt-tiny", tree: str | None = None):
    return Side(case=Case(workload=workload, combination=parse(combination)), tree=tree)

"""Sides small enough to pair for real in half a second."""

import pytest

from stepbench.core import Case
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import this_machine
from stepbench.training.techniques import parse
from stepbench.verdicts import Side

QUICK = Settings(rounds=1, max_steps=3, min_steps=3)


@pytest.fixture(scope="session")
def machine():
    return this_machine()


def side(combination: str = "baseline", workload: str = "gpt-tiny", tree: str | None = None):
    return Side(case=Case(workload=workload, combination=parse(combination)), tree=tree)

"""Cases small enough to measure for real in half a second a process."""

from collections.abc import Callable

import pytest

from stepbench.measuring.measure import measure
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import this_machine
from stepbench.records.case import Case
from stepbench.records.run import Record
from stepbench.training.techniques import parse

QUICK = Settings(rounds=1, extra_rounds=0, max_steps=3, min_steps=3)


@pytest.fixture(scope="session")
def machine():
    return this_machine()


@pytest.fixture
def measured(machine) -> Callable[..., Record]:
    """Measure a combination of `gpt-tiny` in one round of real processes."""

    def run(combination: str, workload: str = "gpt-tiny", settings: Settings = QUICK) -> Record:
        case = Case(workload=workload, combination=parse(combination))
        return measure(case, settings, machine)

    return run

"""Optional libraries: a test that needs one is skipped where it is not installed, CI has them."""

import importlib.util

import pytest

from stepbench.records.run import Record


def needs(library: str) -> pytest.MarkDecorator:
    """Found, not imported: the process that forks workers must not load more than they need."""
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")


def skip_where_emulated(record: Record) -> None:
    """Skip a test of what this processor would take minutes to emulate."""
    if "times a float32 one on this processor" in (record.outcome.reason or ""):
        pytest.skip(record.outcome.reason or "")

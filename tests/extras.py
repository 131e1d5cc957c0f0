"""Optional libraries: a test that needs one is skipped where it is not installed, CI has them."""

import importlib.util

import pytest


def needs(library: str) -> pytest.MarkDecorator:
    """Found, not imported: the process that forks workers must not load more than they need."""
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")

"""Compilers' caches: empty ones for each case, so that compile time is a property of the case.

Shared ones would make the first process of a run, or the first commit of several, pay for all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@contextmanager
def cold_caches() -> Iterator[None]:
    """What is forked in here compiles into folders of its own, removed at the end."""
    # A compiler's helpers may still write while they are killed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        folders = {name: os.path.join(folder, name.lower()) for name in CACHES}
        with patch.dict(os.environ, folders):
            yield

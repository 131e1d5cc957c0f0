"""Optional libraries that are slow to import, loaded once before workers are forked.

Only by a process that forks: what it has imported, its children need not. All others stay with the
workers that need them: some ask CUDA for its devices at import, after which nobody can fork.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable

from stepbench.training.libraries import without_others

# peft brings transformers: 2.5 s.
SLOW = ("peft",)


def preload(modules: Iterable[str]) -> None:
    """Import those of the modules that are slow and installed."""
    for name in modules:
        if name in SLOW and importlib.util.find_spec(name):
            with without_others():
                importlib.import_module(name)

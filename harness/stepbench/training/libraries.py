"""Optional libraries, imported without what they would drag along."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# peft loads them where they are installed, to adapt models that are quantized already: 2 s, and
# they may ask CUDA for its devices at import, after which a process cannot fork.
HIDDEN = ("bitsandbytes", "torchao")


@contextmanager
def without_others() -> Iterator[None]:
    """In here those of `HIDDEN` that are not imported yet cannot be found."""
    hidden = [name for name in HIDDEN if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]

"""Stepbench: what each training technique buys on this machine, measured beside its baseline.

`__all__` is what users import; `docs/stability.md` says what is promised of it. A name is loaded
when it is first asked for, so that `import stepbench` and reading results need no torch.

    from stepbench import Workload
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepbench.errors import StepbenchError
    from stepbench.metrics.metric import Metric
    from stepbench.report.column import Column
    from stepbench.training.types import Axis, Batch, Loop, Plan, Technique, Unsupported, Workload

__all__ = [
    "Axis",
    "Batch",
    "Column",
    "Loop",
    "Metric",
    "Plan",
    "StepbenchError",
    "Technique",
    "Unsupported",
    "Workload",
]


_HOMES = {"StepbenchError": "errors", "Metric": "metrics.metric", "Column": "report.column"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "training.types")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

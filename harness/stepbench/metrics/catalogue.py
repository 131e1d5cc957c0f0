"""All metrics, as one tuple: what the gate compares and ASV tracks is found here by its policy."""

from __future__ import annotations

from typing import Any

from stepbench.metrics import beside, counts, device, memory, time, utilization
from stepbench.metrics.metric import Metric

# A module names others' metrics, too.
METRICS: tuple[Metric[Any], ...] = tuple(
    dict.fromkeys(
        value
        for module in (time, memory, counts, beside, device, utilization)
        for value in vars(module).values()
        if isinstance(value, Metric)
    )
)
# Those that repeat exactly, of what ASV tracks.
COUNTS = tuple(one.key for one in METRICS if one.asv and one.counted)

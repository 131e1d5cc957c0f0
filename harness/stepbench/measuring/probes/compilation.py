"""What torch.compile did in this process, and whether a step ran what it made.

Counted by dynamo itself; that compiled graphs ran is seen in a step under torch's profiler, which,
unlike a dispatch mode, leaves compilation on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
import torch._dynamo.utils as dynamo
from torch.profiler import ProfilerActivity, profile

from stepbench.records.measurement import Compilation
from stepbench.training.techniques.compiling import LOSS
from stepbench.training.types import Loop

# How the profiler names a call into a graph that dynamo has compiled.
COMPILED_CALL = "Torch-Compiled Region"
# How it names the backward pass of a product that no graph holds.
EAGER_PRODUCT = re.compile(
    r"autograd::engine::evaluate_function: "
    r"(Mm|Addmm|Bmm|Baddbmm|Linear|Convolution|\w*Rnn|ScaledDotProduct)\w*Backward"
)


def compilation() -> Compilation | None:
    """What was compiled so far; None if nothing was."""
    graphs = dynamo.counters["stats"]["unique_graphs"]
    if not graphs:
        return None
    again = {
        str(one.compile_id)
        for one in dynamo.get_compilation_metrics()
        if not str(one.compile_id).endswith("/0")
    }
    return Compilation(
        compile_s=compile_s(),
        graphs=graphs,
        graph_breaks=sum(dynamo.counters["graph_break"].values()),
        recompiles=len(again),
    )


def compile_s() -> float:
    """Seconds that went into compiling so far."""
    return float(dynamo.calculate_time_spent().get("total_wall_time", 0.0))


def calls(loop: Loop, step: Callable[[Loop], None]) -> dict[str, int]:
    """Run a step, and an eager one, under the profiler: Counters' fields about compiled graphs."""
    names, in_update = _events(loop, step)
    with torch.compiler.set_stance("force_eager"):
        eager, _ = _events(loop, step)
    compiled = dynamo.get_compilation_metrics()
    of_loss = {f"{COMPILED_CALL}: {one.compile_id}" for one in compiled if one.co_name == LOSS}
    return {
        "compiled_calls": sum(n.startswith(COMPILED_CALL) and n not in of_loss for n in names),
        "compiled_updates": sum(n.startswith(COMPILED_CALL) for n in in_update),
        "eager_products": sum(bool(EAGER_PRODUCT.match(name)) for name in names),
        "skipped_frames": dynamo.counters["frames"]["total"] - dynamo.counters["frames"]["ok"],
        "all_products": sum(bool(EAGER_PRODUCT.match(name)) for name in eager),
    }


def _events(loop: Loop, step: Callable[[Loop], None]) -> tuple[list[str], list[str]]:
    """Names of what a step did before its update, and in it: an optimizer may compile itself."""
    before, amid = (profile(activities=[ProfilerActivity.CPU]) for _ in range(2))

    def update() -> None:
        before.stop()
        with amid:
            loop.update()

    before.start()
    step(replace(loop, update=update))
    names, in_update = ([event.name for event in one.events() or ()] for one in (before, amid))
    return names, in_update

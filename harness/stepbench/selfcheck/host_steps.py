"""What is measured on a host that is at hand for a short time, in the order of what it is worth.

Standard library only.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

# A run starts no case in the last part of its step, so that it can end by itself.
LAST_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command, as arguments of the interpreter.

    `gpu` and `cpu` may hold {results} (a folder), {minutes} (how long to start cases) and {commit}
    (the option that names the commit, or nothing). `cpu` is the same in a small size.
    `limit_s`: it is stopped after so long in one call.
    """

    name: str
    gpu: str
    cpu: str
    limit_s: float

    def command(
        self, *, has_gpu: bool, results: Path, commit: str | None, seconds: float
    ) -> list[str]:
        """The arguments for a machine and the time that is left."""
        text = (self.gpu if has_gpu else self.cpu).format(
            results=shlex.quote(str(results)),
            minutes=f"{max(0.0, seconds - LAST_S) / 60:.2f}",
            commit=f"--commit {shlex.quote(commit)}" if commit else "",
        )
        return shlex.split(text)


RUN = "-m stepbench run --results {results} --minutes {minutes} {commit} --deadline-s 240 "
SMALL = "-w gpt-tiny --rounds 1 --steps 3"
OVERHEAD = "-m stepbench selfcheck overhead "
NULL_PAIRS = "-m stepbench.selfcheck.null_pairs --results {results} --minutes {minutes} "
PUBLISHED = "-m stepbench.selfcheck.published --results {results} --minutes {minutes}"

STEPS = (
    Step(
        name="selfcheck",
        gpu="-m stepbench selfcheck device",
        cpu="-m stepbench selfcheck device",
        limit_s=400,
    ),
    Step(
        name="overhead",
        gpu=OVERHEAD + "--workload gpt-124m --pairs 20 --rounds 3",
        cpu=OVERHEAD + "--workload gpt-tiny --pairs 6 --rounds 1",
        limit_s=400,
    ),
    Step(
        name="precisions",
        gpu=RUN + "fp32 tf32 fp16 bf16 -w gpt-124m --rounds 6",
        cpu=RUN + "fp32 tf32 fp16 bf16 " + SMALL,
        limit_s=540,
    ),
    Step(
        name="bf16-smaller",
        gpu=RUN + "bf16+ckpt1 bf16+accum4 -w gpt-124m --rounds 6",
        cpu=RUN + "bf16+ckpt1 bf16+accum4 " + SMALL,
        limit_s=540,
    ),
    Step(
        name="large",
        # Its baseline in fp32 holds 26 GB of weights, gradients and state, and 3.8 MB a token.
        gpu=RUN + "bf16+compile -w gpt-1.5b@batch=8 --rounds 1",
        cpu=RUN + "bf16+compile " + SMALL,
        limit_s=450,  # one case: less than a call, or each call would begin it anew
    ),
    Step(
        name="null-pairs",
        gpu=NULL_PAIRS + "--combination bf16 --workload gpt-124m --pairs 24",
        cpu=NULL_PAIRS + "--combination bf16 --workload gpt-tiny --pairs 6",
        limit_s=540,
    ),
    Step(name="published", gpu=PUBLISHED, cpu=PUBLISHED, limit_s=450),
    Step(
        name="catalogue",
        gpu=RUN + "-w gpt-124m --rounds 1",
        cpu=RUN + SMALL,
        limit_s=540,
    ),
)

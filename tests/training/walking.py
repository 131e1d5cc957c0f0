"""Walks pairs of techniques: each trains right, or says in one line why it does not."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from stepbench.measuring.probes.counters import count
from stepbench.measuring.probes.elements import elements
from stepbench.measuring.probes.parity import Parity
from stepbench.measuring.ranks import Group
from stepbench.records.case import Case
from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.step import train_step
from stepbench.training.techniques import (
    AXES,
    chosen_techniques,
    compiling,
    find,
    incompatible,
    other_mathematics,
    parse,
    plan_of,
    tolerance,
    unsupported,
)
from stepbench.training.types import Unsupported
from stepbench.training.workloads import load

WORKLOAD = "gpt-tiny@batch=4"
STEPS = 2
CPU = torch.device("cpu")
MACHINE: dict[str, Any] = {"gpus": [], "cores": 2}
# One of each family.
ONE_OF = {
    "ckpt": "ckpt1",
    "lora": "lora4",
    "workers": "workers1",
    "prefetch": "prefetch4",
    "accum": "accum2",
}
# adam8bit with a compiler that takes minutes for its update.
TOO_SLOW = ("adam8bit-compiled",)
# What only ever proves itself where it is loaded or compiled.
PROVED_ELSEWHERE = ("workers", "pinning", "prefetch", "persistence", "compile", "threads")


def names() -> list[str]:
    """Every technique once, baselines left out, families by one of them.

    Threads are a setting of the process, and nothing that is built.
    """
    found: dict[str, None] = {}
    for axis in (one for one in AXES if one.name != "threads"):
        for name in axis.examples:
            word = name.rstrip("0123456789")
            if name not in (axis.baseline, *TOO_SLOW):
                found[ONE_OF.get(word, name)] = None
    return list(found)


def pairs(of: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Those of two axes."""
    for one, other in itertools.combinations(of, 2):
        if find(one)[0] is not find(other)[0]:
            yield one, other


@dataclass
class Walk:
    """What came of each pair: `trained`, or the reason of `refused`; `wrong` must stay empty."""

    ranks: int = 1
    group: Group | None = None
    trained: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        compiling.BACKEND = "eager"  # dynamo's tracing, and no compiler
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        self.workload = load(WORKLOAD)
        self.workload = replace(self.workload, optimizer_kind="AdamW", batch_dependent=False)
        self.loaders: list[Batches] = []  # to end their workers would take torch 5 s each
        self.figures_of = cache(self._figures)

    def walk(self, chosen: Iterable[tuple[str, str]]) -> Walk:
        """Try each pair."""
        for one, other in chosen:
            name = str(parse(f"{one}+{other}"))
            try:
                self._try(name)
            except Unsupported as error:
                self.refused[name] = str(error)
            except Exception as error:
                self.wrong[name] = f"{type(error).__name__}: {error}"
        return self

    def _try(self, name: str) -> None:
        combination = parse(name)
        together = plan_of(combination).distributed
        case = Case(workload=WORKLOAD, combination=combination, ranks=self.ranks if together else 1)
        reason = unsupported(case, MACHINE) or incompatible(self.workload, case)
        if reason:
            self.refused[name] = reason
            return
        ours, objection = self.figures_of(name)
        reference, _ = self.figures_of(str(other_mathematics(self.workload, combination)))
        allowed = tolerance(self.workload, combination)
        far = max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))
        if objection or not far <= allowed:
            self.wrong[name] = objection or f"differs by {far:.1e}, more than {allowed:.1e}"
        else:
            self.trained.append(name)

    def _figures(self, name: str) -> tuple[tuple[float, ...], str | None]:
        """Loss and gradient norm of two steps, and what a proof has against a third."""
        torch._dynamo.reset()
        combination = parse(name)
        group = self.group if plan_of(combination).distributed else None
        ranks, rank = (self.ranks, group.place.rank) if group else (1, 0)
        mesh = group.mesh if group else None
        loop, site = build(self.workload, combination, CPU, ranks=ranks, rank=rank, mesh=mesh)
        batches = Batches(self.workload, site.plan, part=(rank, ranks), batches_an_epoch=2)
        self.loaders.append(batches)
        parity = Parity()
        for _ in range(STEPS):
            parity.observe(loop, next(batches), site)
        with torch.compiler.set_stance("force_eager"):
            counters = count(
                loop,
                lambda of: train_step(of, next(batches), site),
                ranks=ranks,
            )
        counters = replace(
            counters,
            learning_rates=tuple(rates[0] for rates in parity.learning_rates),
            **elements(loop, CPU),
        )
        objections = (
            f"{technique.name}: {reason}"
            for axis, technique in zip(AXES, chosen_techniques(combination), strict=True)
            if axis.name not in PROVED_ELSEWHERE
            and (reason := technique.proof(counters, site.plan))
        )
        losses = [group.mean(loss) if group else loss for loss in parity.losses]
        return (*losses, *parity.grad_norms), next(objections, None)


def runs_here(name: str) -> bool:
    """Whether a CPU can run the technique."""
    return not unsupported(Case(workload=WORKLOAD, combination=parse(name), ranks=2), MACHINE)


def installed(name: str) -> bool:
    """Whether the technique's libraries are there."""
    return all(
        importlib.util.find_spec(module.partition(".")[0]) for module in find(name)[1].imports
    )

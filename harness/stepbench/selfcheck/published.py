"""Published figures beside ours on the same shapes: the reproduction sheet.

    python -m stepbench.selfcheck.published --results results

Each figure is measured in a fresh process. On a CPU the same code runs on shapes `SMALLER` times
smaller, which shows that it runs and compares with nothing. Every row is kept, when it is there, in
results/published/<machine>/sheet.jsonl: the same command measures what has no figure there yet.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from stepbench.errors import StepbenchError
from stepbench.measuring.sweep import claimed_machine
from stepbench.records.machine import device_type, summary
from stepbench.selfcheck.cases import trains
from stepbench.selfcheck.checking import Machine, applies, device_of, needs_gpu, tried
from stepbench.selfcheck.journal import add, opened, read
from stepbench.selfcheck.kernels import (
    HEAD,
    HEADS,
    TOKENS,
    Measure,
    Measured,
    adam,
    attention,
    copies,
    float8_linear,
    product,
)
from stepbench.store import now

OUT_OF_TIME = 3
OUT_OF_MEMORY = "out of memory"
SMALL = "not comparable: small shapes on a CPU"
# What sizes are divided by on a CPU. Products of 8-bit floats need multiples of 16.
SMALLER = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One published figure.

    Attributes:
        value: in `unit`, or `OUT_OF_MEMORY`; None: no figure was read off for it.
        source: where it was published.
        card: what it was published for; other cards than an H100 are compared in ratios only.
        same_setting: ours is of what was published; else no ratio is told.
        unchecked: what of the published setting, or of ours, may differ.
        measure: ours, from the device and what sizes are divided by.
        not_here: what the machine lacks for it; None: nothing.
    """

    id: str
    setting: str
    value: float | str | None
    unit: str
    source: str
    unchecked: str
    measure: Measure = field(repr=False)
    card: str = "H100"
    same_setting: bool = True
    not_here: Callable[[Machine], str | None] = applies
    deadline_s: float = 60.0

    def told(self) -> dict[str, Any]:
        """What is declared, as JSON."""
        names = ("id", "setting", "value", "unit", "source", "card", "same_setting", "unchecked")
        return {name: getattr(self, name) for name in names}

    def label(self, machine: Machine) -> str:
        """How ours may be compared; empty where it may without reserve."""
        if device_type(machine) == "cpu":
            return SMALL
        here = machine["gpus"][0]["name"]
        reserves = {
            "ratio only": self.card != "H100",
            "another card": self.card == "H100" and self.card not in here,
            "not the same setting": not self.same_setting,
        }
        return "; ".join(words for words, holds in reserves.items() if holds)


def _attention_figure(kernel: str, length: int, value: float | str | None) -> Figure:
    return Figure(
        id=f"attention {kernel} {length}",
        setting=f"bf16 forward, not causal, {TOKENS // length} x {HEADS} heads x {length} x {HEAD}",
        value=value,
        unit="TFLOP/s",
        source="flash-attention 3's charts",
        unchecked="whether the chart's line is causal and its data type, and which is cuDNN's; "
        "standard is torch's math kernel in bf16 here, products and a softmax by hand there",
        measure=attention(kernel, length),
        not_here=needs_gpu if kernel == "cudnn" else applies,
    )


def _float8_figure(rows: int, inner: int, columns: int, value: float) -> Figure:
    return Figure(
        id=f"fp8 linear {rows}x{inner}x{columns}",
        setting="forward and backward of a compiled linear layer (on a CPU eager), fp8 with "
        "dynamic tensor-wise scaling against bf16",
        value=value,
        unit="x",
        source="torchao's float8 README",
        unchecked="what surrounds the linear layer in the published figure; ours has nothing",
        measure=float8_linear(rows, inner, columns),
        not_here=trains("bf16+fp8", "8-bit floats by torchao").not_here,
        deadline_s=180.0,
    )


FIGURES: tuple[Figure, ...] = (
    Figure(
        id="product",
        setting="bf16, 6144x17920x2816 (M, N, K)",
        value=792.0,
        unit="TFLOP/s",
        source="ml-engineering",
        unchecked="the order of the sizes and how the operands lie in memory",
        measure=product(6144, 17920, 2816),
    ),
    _attention_figure("standard", 512, 74.0),
    _attention_figure("flash", 512, 309.0),
    _attention_figure("cudnn", 512, None),
    _attention_figure("standard", 8192, 139.0),
    _attention_figure("flash", 8192, 370.0),
    _attention_figure("cudnn", 8192, None),
    _attention_figure("standard", 16384, OUT_OF_MEMORY),
    _attention_figure("flash", 16384, None),
    _attention_figure("cudnn", 16384, None),
    Figure(
        id="pinned copies",
        setting="published: of a training step; ours: bytes/s of copies of 256 MiB, pinned and "
        "non-blocking against pageable",
        value=1.41,
        unit="x",
        source="ml-engineering",
        card="A100 PCIe",
        same_setting=False,
        unchecked="the published step's model and batch",
        measure=copies,
        not_here=needs_gpu,
    ),
    Figure(
        id="fused Adam",
        setting="published: the update of DPA-2, 22 to 8 ms of a 922 ms step; ours: that of "
        "gpt-124m's parameters by AdamW, foreach against fused",
        value=22 / 8,
        unit="x",
        source="deepmd-kit issue 4463",
        card="not known",
        same_setting=False,
        unchecked="the published card; that the 22 ms are foreach's, torch's default on CUDA",
        measure=adam,
    ),
    # Last: they are compiled, and a host's time may end before.
    _float8_figure(1024, 2048, 1024, 0.80),
    _float8_figure(4096, 8192, 16384, 1.39),
)


def row_of(figure: Figure, machine: Machine) -> dict[str, Any]:
    """Measure a figure in a fresh process; whatever happens there is in the row (JSON)."""
    if reason := figure.not_here(machine):
        answer: dict[str, Any] = {"outcome": "not here", "seen": reason, "seconds": 0.0}
    else:
        answer = tried(partial(_measured, figure.measure), machine, figure.deadline_s)
    smaller = _smaller(machine)
    return {"at": now(), "published": figure.told(), "sizes_divided_by": smaller, "ours": answer}


def _measured(measure: Measure, machine: Machine) -> Measured:
    try:
        return measure(device_of(machine), _smaller(machine))
    except torch.OutOfMemoryError:
        return {"value": OUT_OF_MEMORY, "parts": {}}


def _smaller(machine: Machine) -> int:
    return SMALLER if device_type(machine) == "cpu" else 1


def table(figures: Sequence[Figure], rows: Mapping[str, Any], machine: Machine) -> str:
    """The sheet in Markdown: a line for each figure that has a row, the machine above."""
    lines = [_line(one, rows[one.id]["ours"], machine) for one in figures if one.id in rows]
    headers = ["figure", "published", "ours", "ratio", "card", "setting", "label"]
    told = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    return f"Ours: {summary(machine)}, torch {torch.__version__}\n\n{told}"


def _line(figure: Figure, ours: Mapping[str, Any], machine: Machine) -> list[str]:
    label, ratio = figure.label(machine), ""
    if ours["outcome"] != "works":
        words = f"{ours['outcome']}: {ours['seen']}"
    else:
        value, parts = ours["seen"]["value"], ours["seen"]["parts"]
        told = ", ".join(f"{part:.3g} {name}" for name, part in parts.items())
        words = _in_unit(value, figure.unit) + (f" ({told})" if told else "")
        both = isinstance(value, float) and isinstance(figure.value, float)
        if both and figure.same_setting and label != SMALL:
            ratio = f"{value / figure.value:.2f}"
    published = _in_unit(figure.value, figure.unit)
    return [figure.id, published, words, ratio, figure.card, figure.setting, label]


def _in_unit(value: float | str | None, unit: str) -> str:
    if isinstance(value, float):
        return f"{value:.3g} {unit}"
    return value or ""


def main(arguments: Sequence[str] | None = None, figures: Sequence[Figure] = FIGURES) -> int:
    """Measure what has no figure yet, keep and print it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--minutes", type=float, default=60.0, help="start no row after so long")
    asked = parser.parse_args(arguments)
    until_s = time.monotonic() + 60 * asked.minutes
    machine = claimed_machine()
    file = opened(asked.results / "published" / machine["name"] / "sheet.jsonl", machine)
    rows = {row["published"]["id"]: row for row in read(file)}
    code = 0
    for figure in figures:
        if figure.id in rows and rows[figure.id]["ours"]["outcome"] == "works":
            continue
        if time.monotonic() > until_s:
            code = OUT_OF_TIME
            break
        rows[figure.id] = row = row_of(figure, machine)
        add(file, row)
        if traceback := row["ours"].get("traceback"):
            print(f"{figure.id}: {row['ours']['seen']}\n{traceback}", file=sys.stderr)
    print(table(figures, rows, machine))
    return code or int(any(row["ours"]["outcome"] == "does not" for row in rows.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StepbenchError as error:
        sys.exit(f"published: {error}")

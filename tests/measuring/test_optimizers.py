"""Optimizers measured for real: their state by arithmetic done by hand, and each disabled."""

import functools
import importlib.util
from dataclasses import replace

import pytest
import torch

from stepbench.measuring.measure import measure_process
from stepbench.records.case import Case
from stepbench.training import build as build_module
from stepbench.training.techniques import optimizers, parse, unsupported
from tests.extras import needs
from tests.measuring.conftest import QUICK

# gpt-1m@seq=8: 6 layers, width 128, vocabulary 256; tied embeddings, 13 norms.
WIDTH, LAYERS, VOCABULARY, SEQ = 128, 6, 256, 8
NORMS = 2 * LAYERS + 1
MATRICES = [(VOCABULARY, WIDTH), (SEQ, WIDTH)] + LAYERS * [
    (3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)
]  # fmt: skip
PARAMETERS = sum(rows * columns for rows, columns in MATRICES) + NORMS * WIDTH
LARGE = sum(rows * columns for rows, columns in MATRICES if rows * columns >= 4096)
TENSORS = len(MATRICES) + NORMS
BLOCK = 256  # elements that share a scale


def ok(record):
    assert record.outcome.ok, (record.outcome, record.outcome.traceback)
    return record.rounds[0].case


def broken(record):
    assert record.outcome.kind == "invalid", record.outcome
    return record.outcome.reason


@pytest.mark.parametrize(
    ("name", "copies"),
    [("sgd", 1), ("adamw-loop", 2), ("adamw-foreach", 2), ("adamw-fused", 2)],
)
def test_whole_copies_of_every_parameter(measured, name, copies):
    one = ok(measured(name, "gpt-1m@seq=8"))
    steps = 4 * TENSORS if copies == 2 else 0
    assert one.memory.parameter_bytes == 4 * PARAMETERS
    assert one.memory.optimizer_bytes == copies * 4 * PARAMETERS + steps
    assert one.counters.state_elements == {"float32": copies * PARAMETERS}
    assert one.counters.trained_elements == one.counters.elements == PARAMETERS


def test_adafactor_keeps_a_row_and_a_column(measured):
    one = ok(measured("adafactor", "gpt-1m@seq=8"))
    factored = sum(rows + columns for rows, columns in MATRICES) + NORMS * WIDTH
    assert one.counters.state_elements == {"float32": factored}
    assert one.memory.optimizer_bytes == 4 * (factored + TENSORS)
    assert one.memory.optimizer_bytes < 0.02 * one.memory.parameter_bytes


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("adam8bit", marks=needs("torchao")),
        pytest.param("adam8bit-bitsandbytes", marks=needs("bitsandbytes")),
    ],
)
def test_8_bit_state_is_a_quarter(measured, name):
    one = ok(measured(name, "gpt-1m@seq=8"))
    kept = one.counters.state_elements
    assert kept["uint8"] == 2 * LARGE
    # In 32 bits: what is too small, a scale a block, and a code book of 256 entries a tensor, the
    # same storage for all of them in bitsandbytes.
    books = 2 * 256 * (len(MATRICES) - 1)
    assert kept["float32"] == 2 * (PARAMETERS - LARGE) + 2 * LARGE // BLOCK + books
    quarter = 2 * 4 * PARAMETERS / 4
    assert one.memory.optimizer_bytes == pytest.approx(quarter, rel=0.06)


LARGE_TENSOR = "tests.training.own_workloads:one_large_tensor"


@needs("torchao")
def test_torchaos_compiled_update_needs_less_memory(machine):
    """For real, g++ included; the steps in float32 are temporaries of the eager update only."""
    eager, compiled = (
        measure_process(Case(workload=LARGE_TENSOR, combination=parse(name)), QUICK, machine)
        for name in ("adam8bit", "adam8bit-compiled")
    )
    updates = eager.counters.compiled_updates, compiled.counters.compiled_updates
    assert updates == (0, 1)  # of one parameter
    assert compiled.counters.state_elements == eager.counters.state_elements
    assert compiled.memory.working_bytes < 0.8 * eager.memory.working_bytes


@needs("torchao")
def test_a_compiled_update_is_told_and_is_no_compiled_model(measured, monkeypatch):
    eager = measured("adam8bit", LARGE_TENSOR)
    assert "torchao compiles its update unless told not to, as here" in eager.outcome.reason
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    record = measured("bf16+adam8bit-compiled", LARGE_TENSOR)
    assert "torchao's default: its update is compiled" in record.outcome.reason
    one = ok(record)
    assert (one.counters.compiled_updates, one.counters.compiled_calls) == (1, 0)
    assert one.compilation.graphs == 1
    assert one.unproved == ()


@needs("torchao")
@pytest.mark.parametrize("name", ["adam8bit", "adam8bit-compiled"])
def test_the_other_one_underneath(measured, monkeypatch, name):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    real = build_module.chosen_techniques
    loops = {"adam8bit": lambda loop, site: loop, "adam8bit-compiled": optimizers._eagerly}
    monkeypatch.setattr(
        build_module,
        "chosen_techniques",
        lambda of: [replace(t, loop=loops[name]) if t.name == name else t for t in real(of)],
    )
    runs = "1" if name == "adam8bit" else "0"
    assert f"{runs} compiled graphs ran in the update" in broken(measured(name, LARGE_TENSOR))


@needs("torchao")
def test_too_small_for_8_bits_is_unsupported(measured):
    record = measured("adam8bit", "tests.training.own_workloads:plain")
    assert record.outcome.kind == "unsupported"
    assert "4096 elements or more; the largest that is trained here has 1024" in (
        record.outcome.reason
    )


def test_adamw_beside_another_optimizer_is_other_mathematics(measured):
    record = measured("adamw-foreach", "cnn-tiny@norm=group")
    assert ok(record).environment["optimizer"] == "SGD"


@pytest.mark.parametrize("name", ["adamw-loop", "adamw-foreach", "adamw-fused"])
def test_another_implementation_underneath(measured, monkeypatch, name):
    other = {"adamw-loop": {"foreach": True}}.get(name, {"foreach": False, "fused": False})
    real = torch.optim.AdamW
    monkeypatch.setattr(
        optimizers.torch.optim, "AdamW", type("Other", (real,), {
            "__init__": lambda self, groups, **_: real.__init__(self, groups, **other)
        }),
    )  # fmt: skip
    assert f"{name} was not active" in broken(measured(name))


def test_hyper_parameters_that_were_not_taken_over(measured, monkeypatch):
    monkeypatch.setitem(optimizers.ADAMW, "lr", 1e-2)
    real = optimizers._groups
    monkeypatch.setattr(
        optimizers,
        "_groups",
        lambda make, parameters, kind, defaults: real(make, parameters, str, defaults),
    )
    assert "differs from the baseline's" in broken(measured("adamw-foreach"))


def test_a_missing_library_is_one_line(monkeypatch, machine):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchao" else real(name)
    )
    case = Case(workload="gpt-tiny", combination=parse("adam8bit"))
    assert unsupported(case, machine) == (
        "torchao is not installed: pip install 'stepbench[torchao]'"
    )

"""torch.compile: what is counted of it, what is proved, and what was only seen eagerly.

The compiler proper takes 20 s a case; dynamo with torch's backend that compiles nothing shows the
same of the harness. One case is compiled for real.
"""

import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from stepbench.measuring import window, worker
from stepbench.measuring.caches import cold_caches
from stepbench.measuring.measure import measure
from stepbench.measuring.probes import timing
from stepbench.measuring.ranks import Group, Place
from stepbench.records.case import Case
from stepbench.training.techniques import compiling, find, incompatible, parse, plan_of, unsupported
from stepbench.training.types import Site
from stepbench.training.workloads import load
from tests.measuring.conftest import QUICK

GPU = {"gpus": [{"name": "H100", "capability": "9.0", "bf16": True}]}


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


def ok(record):
    assert record.outcome.ok, (record.outcome, record.outcome.traceback)
    return record.rounds[0].case


def test_a_whole_model_is_one_graph_and_its_loss_another(measured, quickly):
    one = ok(measured("compile"))
    assert one.counters.compiled_calls == 1
    assert one.compilation.graphs == 2
    assert (one.compilation.graph_breaks, one.compilation.recompiles) == (0, 0)
    assert one.compilation.compile_s > 0
    assert one.unproved == ()


def test_a_loss_inside_the_model_is_in_its_graph(measured, quickly):
    one = ok(measured("compile+accum2", "tests.training.own_workloads:dictionary"))
    assert one.counters.compiled_calls == 2
    assert one.compilation.graphs == 1


def test_micro_batches_of_unequal_terms_recompile_nothing(measured, quickly):
    one = ok(measured("compile+accum4", "tests.training.own_workloads:ragged"))
    assert one.counters.compiled_calls == 4
    assert one.compilation.recompiles == 0


def test_counts_are_of_the_eager_program(measured, quickly):
    eager, compiled = ok(measured("baseline")), ok(measured("compile"))
    assert eager.compilation is None
    assert compiled.counters.operators == eager.counters.operators
    assert compiled.counters.flops == eager.counters.flops


def test_what_acts_inside_a_compiled_model_is_unproved(measured, quickly):
    assert ok(measured("bf16+compile+accum2+ckpt1")).unproved == ("ckpt1", "bf16")


@pytest.mark.parametrize("name", ["compile+ckpt-selective", "compile+adamw-foreach", "compile+ddp"])
def test_it_composes(measured, quickly, name):
    ok(measured(name))


def test_shards_are_compiled_by_block(machine, quickly):
    case = Case(workload="gpt-tiny", combination=parse("compile+fsdp2"), ranks=2)
    one = ok(measure(case, QUICK, machine))
    assert one.counters.compiled_calls == one.counters.blocks == 2
    assert one.compilation.graphs == 2  # of all blocks and of the loss


def test_a_model_of_torchs_own_modules_is_compiled_too(measured, quickly):
    one = ok(measured("compile", "tests.training.own_workloads:of_torchs_own_modules"))
    assert one.compilation.graphs == 2  # the loss is torch's own function, too


def test_a_graph_break_is_counted(measured, quickly):
    one = ok(measured("compile", "tests.training.own_workloads:breaks_its_graph"))
    assert one.compilation.graph_breaks >= 1
    assert one.compilation.graphs >= 2


def test_a_model_that_is_not_compiled_underneath(measured, quickly, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: None)
    record = measured("compile")
    assert record.outcome.kind == "invalid"
    assert (
        "products ran in compiled graphs, of which 0 were called in a step of 1"
        in record.outcome.reason
    )


def test_a_model_of_which_a_part_is_compiled(measured, quickly, monkeypatch):
    real = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: real(self.blocks[0], **options)
    )
    record = measured("compile")
    assert record.outcome.kind == "invalid"
    assert "products ran in compiled graphs, of which 1 were called" in record.outcome.reason


def test_what_the_model_itself_keeps_from_compilation_is_told(measured, quickly):
    record = measured("compile", "tests.training.own_workloads:in_a_row@kept_out=True")
    ok(record)
    assert "67% of products compiled" in record.outcome.reason


def test_a_workload_that_compiles_itself_is_no_baseline(measured):
    record = measured("baseline", "tests.training.own_workloads:compiled_by_itself")
    assert record.outcome.kind == "invalid"
    assert "compiles its own model; hand over the plain one" in record.outcome.reason


def test_a_step_that_compiles_in_the_window_is_no_sample(measured, quickly, monkeypatch):
    """After 8 steps of parity and 2 of warm-up, the third of the window has longer samples."""
    monkeypatch.setattr(window, "_timed", lambda step, device: step() or 0.1)
    record = measured("compile", "tests.training.own_workloads:longer_from_batch_12")
    one = ok(record)
    assert one.batches == (10, 11, 13)
    assert record.rounds[0].baseline.batches == (10, 11, 12)
    assert len(one.step_s) == len(one.parts_s["forward"]) == len(one.step_tokens) == 3
    assert sum(one.step_s) == pytest.approx(one.window_s, rel=0.01)
    assert one.compilation.recompiles > 0


@pytest.mark.parametrize(
    ("compiles", "ran", "samples"),
    [
        ((), 3, [0, 1, 2]),
        ((1,), 4, [0, 2, 3]),
        ((0, 2, 4), 6, [1, 3, 5]),
        (range(9), 6, []),
    ],
)
def test_as_many_steps_are_timed_as_compiled(monkeypatch, compiles, ran, samples):
    """What dynamo has spent grows in these steps."""
    steps, spent_s = iter(range(9)), [0.0]
    monkeypatch.setattr(window, "compile_s", lambda: spent_s[0])

    def step():
        spent_s[0] += next(steps) in compiles

    cpu = torch.device("cpu")
    alone = Group(Place(), cpu, 60.0, host_tensors=False)
    told, kept = window.time_window(step, 3, alone, marks=timing.Marks(cpu), marks_a_step=0)
    assert (len(told.step_s), kept) == (ran, samples)
    assert len(told.cpu_s) == ran
    assert told.window_s == pytest.approx(sum(told.step_s), abs=1e-3)


def test_steps_that_compile_again_and_again_are_no_window(measured, quickly, monkeypatch):
    def timed(step, steps, *arguments, **marks):
        ran, _ = time_window(step, steps, *arguments, **marks)
        return ran, []

    time_window = worker.time_window
    monkeypatch.setattr(worker, "time_window", timed)
    outcome = measured("compile").outcome
    assert outcome.kind == "failed"  # its baseline
    assert "3 of 3 timed steps were compiled" in outcome.reason


@pytest.mark.parametrize(
    ("name", "mode"),
    [("compile", None), ("compile-overhead", "reduce-overhead"), ("compile-max", "max-autotune")],
)
def test_the_loss_is_compiled_as_the_model_is(monkeypatch, name, mode):
    chosen = []
    monkeypatch.setattr(torch, "compile", lambda of, **options: chosen.append(options) or of)
    workload = load("gpt-tiny")
    site = Site(workload=workload, plan=plan_of(parse(name)), device=torch.device("cpu"))
    technique = find(name)[1]
    technique.model(nn.Linear(1, 1), replace(site, workload=replace(workload, blocks=list)))
    technique.loss(workload.loss, site)
    assert chosen == [{"backend": "inductor", "mode": mode}] * 2


def test_what_cuda_graphs_need():
    def reason(name, machine):
        return unsupported(Case(workload="gpt-tiny", combination=parse(name)), machine)

    assert "a CPU has none" in reason("compile-overhead", {"gpus": []})
    assert reason("compile-overhead", GPU) is None
    assert "overwrite the gradients" in reason("compile-overhead+accum2", GPU)
    assert "choose compile" in reason("compile-max+accum2", GPU)
    assert reason("compile-max+accum2", {"gpus": []}) is None
    case = Case(workload="gpt-tiny", combination=parse("compile+dataparallel"), ranks=2)
    assert "choose ddp" in incompatible(load("gpt-tiny"), case)


def test_caches_are_empty_folders_of_their_own():
    before = dict(os.environ)
    with cold_caches():
        folders = {os.environ[name] for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        assert len(folders) == 2
        assert not any(os.path.exists(folder) for folder in folders)
    assert dict(os.environ) == before


def test_for_real(machine):
    """g++ included: the fused step has the eager one's loss."""
    case = Case(workload="gpt-tiny", combination=parse("compile"))
    one = ok(measure(case, QUICK, machine))
    assert one.compilation.compile_s > 0.5

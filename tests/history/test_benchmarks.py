"""What stands in benchmarks/: every name is a technique, and the default sweep is what it says."""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import re
from pathlib import Path

import pytest
from asv_runner.benchmarks import benchmark_types

import benchmarks
from benchmarks import precision, product, product_full
from stepbench.history.suite import RANKS, Cases, CompileCases, Measured, RankCases, StateCases
from stepbench.selfcheck import intervals
from stepbench.training.techniques import parse
from stepbench.training.workloads import canonical

MODULES = [
    importlib.import_module(f"benchmarks.{one.name}")
    for one in pkgutil.iter_modules(benchmarks.__path__)
]
CLASSES = [
    value
    for module in MODULES
    for value in vars(module).values()
    if inspect.isclass(value) and value.__module__ == module.__name__
]
# What `make bench` runs on one rank: the first pattern of its Makefile's line names the files.
(BENCH,) = re.findall(
    r"asv run -b '\^\(([\w|]+)\)", Path(benchmarks.__path__[0]).with_name("Makefile").read_text()
)
DEFAULT = [one for one in CLASSES if one.__module__.split(".")[1] in BENCH.split("|")]


def cases(classes: list[type[Cases]]) -> set[str]:
    products = [names for one in classes for names in itertools.product(*one.params)]
    return {
        str(
            parse("+".join(name for name in names if not RANKS.fullmatch(name) and "=" not in name))
        )
        for names in products
    }


def test_the_folder_holds_only_classes_of_parameters() -> None:
    assert len(CLASSES) >= 25
    for one in CLASSES:
        assert issubclass(one, Cases), one
        names = {name for name in vars(one) if not name.startswith("__")}
        assert names <= {"workload", "param_names", "params", "batch_grows"}, one


@pytest.mark.parametrize("benchmark", CLASSES, ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_every_parameter_is_a_technique_and_every_workload_exists(benchmark: type[Cases]) -> None:
    assert cases([benchmark])
    assert len(benchmark.params) == len(benchmark.param_names)
    assert {canonical(text) for text in benchmark.workload.values()}
    lengths = [name for names in benchmark.params for name in names if "=" in name]
    assert all(canonical(f"gpt-1m@{length}") for length in lengths)
    assert benchmark.workload.keys() <= {"cpu", "cuda"}


def test_the_default_sweep_has_fp16_alone_and_in_one_cell() -> None:
    default = cases(DEFAULT)
    assert len(default - {"tf32"}) >= 24  # no CPU has tf32
    assert {name for name in default if "fp16" in name} == {"fp16", "fp16+accum4+ckpt2"}


def test_the_intervals_are_judged_by_the_default_sweep() -> None:
    assert {str(one.combination) for one in intervals.cases("gpt-1m")} == cases(DEFAULT)


def test_the_full_product_holds_every_other_case() -> None:
    assert cases(DEFAULT) <= cases([product_full.ProductFull])


def test_versions_change_with_the_workload() -> None:
    other = type("Other", (Cases,), {"workload": {"cpu": "gpt-1m@batch=4"}})
    assert other().version != precision.Precision().version
    assert product.Product().version == precision.Precision().version


def test_metrics_are_benchmarks_and_imported_functions_are_not() -> None:
    metrics = [
        name
        for one in (Cases, CompileCases, StateCases, RankCases)
        for name in vars(one)
        if "measure_" in name
    ]
    assert len(metrics) == 16
    assert all(Measured.name_regex.match(name) for name in metrics)
    assert not Measured.name_regex.match("measure_once")


def test_nothing_else_in_the_folder_is_taken_for_a_benchmark() -> None:
    """ASV takes functions for benchmarks by their names, imported ones too."""
    patterns = [kind.name_regex for kind in benchmark_types]
    found = [
        f"{module.__name__}.{function}"
        for module in MODULES
        for function, value in vars(module).items()
        if inspect.isroutine(value) and any(one.match(function) for one in patterns)
    ]
    assert found == []

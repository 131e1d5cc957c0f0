"""The table of pairs names what there is, and nothing else names the techniques of other files."""

import ast
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stepbench
from stepbench.records.case import Case
from stepbench.training.build import build
from stepbench.training.incompatible import INCOMPATIBLE, INCOMPATIBLE_ON_GPUS, Incompatible
from stepbench.training.techniques import AXES, find, incompatible, parse, unsupported
from stepbench.training.types import Unsupported
from stepbench.training.workloads import load

PACKAGE = Path(stepbench.__file__).parent
TECHNIQUES = PACKAGE / "training" / "techniques"
# These rooms choose cases by name, as a person does on the command line.
CHOOSE_CASES = {"cli", "selfcheck", "thresholds", "history"}
# Words that mean something else as well: keys of records, and parts of torch's names.
OTHER_MEANINGS = {"threads", "optimizer", "attention", "bf16"}
# Reading results comes before training and cannot import it. What is read there by a name that
# stands in records is listed here, until a metric says it.
IN_RECORDS = {
    "report": {"workers"},
    "metrics": {"quantization", "precision", "fp32", "tf32", "fp16"},
}


def names_of(axis):
    techniques = {one for each in axis.techniques for one in (each.name, *each.also)}
    return {axis.name, axis.baseline, *axis.examples, *axis.families, *techniques}


def strings(path):
    tree = ast.parse(path.read_text())
    return {one.value for one in ast.walk(tree) if isinstance(one, ast.Constant)}


def axes_of(path):
    """The axes that a file of techniques makes."""
    made = {
        ast.literal_eval(next(word.value for word in call.keywords if word.arg == "name"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Axis"
    }
    return [axis for axis in AXES if axis.name in made]


def test_techniques_and_axes_are_named_in_their_own_file_and_in_the_table_alone():
    everything = set().union(*map(names_of, AXES))
    found = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        if room in CHOOSE_CASES or path == PACKAGE / "training" / "incompatible.py":
            continue
        own = axes_of(path) if path.parent == TECHNIQUES else []
        foreign = everything - set().union(*map(names_of, own)) - OTHER_MEANINGS
        foreign -= IN_RECORDS.get(room, set())
        if strays := foreign & strings(path):
            found[str(path.relative_to(PACKAGE))] = strays
    assert found == {}


def test_every_axis_is_found_in_a_file():
    files = [path for path in TECHNIQUES.glob("*.py") if path.name != "__init__.py"]
    assert {axis.name for path in files for axis in axes_of(path)} == {axis.name for axis in AXES}


@pytest.mark.parametrize("entry", [*INCOMPATIBLE, *INCOMPATIBLE_ON_GPUS], ids=str)
def test_an_entry_names_what_there_is_and_what_to_choose(entry):
    axes = {axis.name for axis in AXES}
    for name in (*entry.these, *entry.those):
        assert name.removeprefix("any ") in axes if name.startswith("any ") else find(name)
    assert ";" in entry.why
    assert "\n" not in entry.why


def spelled(label):
    """A technique that a label stands for."""
    axis = next((one for one in AXES if label == f"any {one.name}"), None)
    return next(one for one in axis.examples if one != axis.baseline) if axis else label


def cases(entry: Incompatible):
    for this, that in itertools.product(map(spelled, entry.these), map(spelled, entry.those)):
        yield Case(workload="gpt-tiny", combination=parse(f"{this}+{that}"), ranks=1)


@pytest.mark.parametrize("entry", INCOMPATIBLE, ids=str)
def test_every_pair_of_the_table_is_refused_with_its_reason(entry):
    """Where two entries speak of a case, the first is told: each here is the first of its own."""
    for case in cases(entry):
        assert entry.why in incompatible(load("gpt-tiny"), case)


@pytest.mark.parametrize("entry", INCOMPATIBLE_ON_GPUS, ids=str)
def test_pairs_that_only_gpus_refuse(entry):
    gpus = {"gpus": [{"name": "H100", "capability": "9.0", "bf16": True}], "cores": 2}
    for case in cases(entry):
        assert incompatible(load("gpt-tiny"), case) is None
        assert entry.why in unsupported(case, gpus)
        assert entry.why not in (unsupported(case, {"gpus": [], "cores": 2}) or "")


def test_a_model_that_returns_its_loss_is_found_in_building():
    workload = replace(load("gpt-tiny"), loss=None)
    with pytest.raises(Unsupported, match="model returns its loss: choose ddp"):
        build(workload, parse("dataparallel"), torch.device("cpu"), ranks=2)

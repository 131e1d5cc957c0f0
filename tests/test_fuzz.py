"""Whatever is malformed is one clear line: never a traceback, never harm to page or disk."""

import contextlib
import copy
import json
import random
import string
from pathlib import Path

import json5
import pytest

from stepbench.errors import StepbenchError
from stepbench.history import configuration
from stepbench.report import compare, page, side_by_side, tables
from stepbench.store import RunFile
from stepbench.training.choice import choose, numbers
from stepbench.training.techniques import known_names, parse
from stepbench.training.workloads import load, names
from tests.synthetic import case, measurement, record, run

MANY = 200
NOISE = [*string.printable, "é", "\u202e", "\x00", "😀"]
HOSTILE = [
    "<script>alert(1)</script>",
    "../../../etc/passwd",
    "\x1b[2J",
    "a\nb",
    "|",
    "`x`",
    "${1}",
]


def mangled(draw, text):
    """A text with some letters added, left out or doubled, or another altogether."""
    letters = list(text)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(letters) + 1)
        letters[at : at + draw.randrange(2)] = draw.choice(
            [[], [draw.choice(NOISE)], list(draw.choice(HOSTILE)), letters[at : at + 3] * 2]
        )
    return "".join(letters)


def one_line(call, *arguments):
    """Whether the call was refused, which must be in one printable line."""
    told = None
    try:
        call(*arguments)
    except StepbenchError as error:
        told = str(error)
    assert told is None or (told.strip() and told.isprintable())
    return told is not None


@pytest.mark.parametrize("seed", range(4))
def test_combinations_and_workloads(seed):
    draw, refused = random.Random(seed), 0
    for _ in range(MANY):
        chosen = "+".join(draw.choices([name.replace("N", "2") for name in known_names()], k=3))
        refused += one_line(parse, mangled(draw, chosen))
        spelled = draw.choice([*names(), "gpt-1m@seq=8,batch=4", "cnn-tiny@norm=group", "json:x"])
        refused += one_line(load, mangled(draw, spelled))
        refused += one_line(numbers, mangled(draw, "1,2,4"))
        refused += one_line(choose, "gpt-tiny", [mangled(draw, "bf16")], [mangled(draw, "bf16")])
    assert refused > 2 * MANY


def test_endless_numbers():
    for word in ("accum", "ckpt", "workers", "lora", "warmup"):
        assert one_line(parse, word + "9" * 5000)


CONFIGURATION = Path(__file__).resolve().parents[1] / "asv.conf.json"
MACHINE_FILE = {"machine": "here", "cpu": "Test CPU", "num_cpu": "2", "ram": "8 GiB", "version": 1}


@pytest.mark.parametrize("seed", range(2))
def test_configurations(tmp_path, seed):
    draw, refused = random.Random(seed), 0
    path, text = tmp_path / "asv.conf.json", CONFIGURATION.read_text(encoding="utf-8")
    rest = json5.loads(text)
    for number in range(MANY // 2):
        broken = mangled(draw, text) if number % 2 else json.dumps(damaged(draw, rest))
        path.write_text(broken, encoding="utf-8")
        refused += one_line(configuration.load, path)
    assert refused > MANY / 8


def test_machine_files(tmp_path, monkeypatch):
    draw, refused = random.Random(0), 0
    path, own = tmp_path / "here" / "machine.json", tmp_path / ".asv-machine.json"
    path.parent.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    text = json.dumps(MACHINE_FILE)
    for number in range(MANY):
        broken = mangled(draw, text) if number % 2 else json.dumps(damaged(draw, MACHINE_FILE))
        path.write_text(broken, encoding="utf-8")
        refused += one_line(configuration.require_machines, tmp_path)
        own.write_text(broken, encoding="utf-8")
        one_line(configuration.save_machine, "here", MACHINE_FILE)
    assert refused > MANY / 4


def nodes(tree, path=()):
    """The paths to everything in decoded JSON."""
    yield path
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        inner = tree[key]
        yield from nodes(inner, (*path, key))


def damaged(draw, line):
    """A line of a run's file in which one thing is gone, or is something else."""
    tree = copy.deepcopy(line)
    *way, last = draw.choice([path for path in nodes(tree) if path])
    inner = tree
    for key in way:
        inner = inner[key]
    if draw.random() < 0.3:
        del inner[last]
    else:
        inner[last] = draw.choice([None, -1, 1e400, [], {}, [{}], "x", True, *HOSTILE])
    return tree


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    file = RunFile.create(tmp_path_factory.mktemp("results"), run())
    for name in ("bf16", "ckpt2"):
        file.add(record(case(name), [(measurement([0.05]), measurement([0.1]))] * 2))
    return [json.loads(line) for line in file.path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("seed", range(4))
def test_records(lines, tmp_path, seed):
    draw, told = random.Random(seed), 0
    path = tmp_path / "run.jsonl"
    for number in range(MANY):
        at = draw.randrange(len(lines))
        broken = [*lines[:at], damaged(draw, lines[at]), *lines[at + 1 :]]
        path.write_text("\n".join(map(json.dumps, broken)) + "\n", encoding="utf-8")
        with contextlib.suppress(StepbenchError):
            told += 1
            file, problems = RunFile.read(path)
            told += bool(problems) - 1
            for show in (tables.terminal, tables.markdown, tables.as_json):
                show(file)
            if number % 4 == 0:  # a page draws for a tenth of a second
                page.write([file], tmp_path / "page")
            side_by_side.terminal(compare.compare(file, file, frozenset()))
    assert told > MANY / 4


def test_hostile_names_do_no_harm(tmp_path):
    for text in HOSTILE:
        header = run(commit=text, software={"torch": text, "stepbench_digest": text})
        told = record(case("bf16", workload=f"gpt-1m@{text}"), [(measurement(), measurement())])
        file = RunFile.create(tmp_path / "results", header)
        file.add(told)
        shown = page.write([file], tmp_path / "page").read_text(encoding="utf-8")
        assert "<script>alert" not in shown
        assert "\x1b" not in tables.terminal(file)
        file.path.unlink()
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {"results", "page"}

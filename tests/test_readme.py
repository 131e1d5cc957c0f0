"""What README and docs show was run: commands work, the table is the committed results' own."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stepbench.store import RunFile
from tests import command
from tests.synthetic import MIB, case, measurement, record, run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Enough to see that a command works; how long it measures, and what, is not README's point.
QUICK = ["--rounds", "1", "--steps", "2"]


PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
LONGEST_README = 150


def blocks(language, *pages):
    """The code blocks of a language, in README and all of docs or in the pages named."""
    texts = [PAGES[name] for name in pages] if pages else [README, *PAGES.values()]
    return [
        block
        for text in texts
        for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    ]


def commands(program):
    """Each command of a program that a page shows, once."""
    lines = dict.fromkeys(line for block in blocks("console") for line in block.splitlines())
    called = [line[2:].partition("#")[0].strip() for line in lines if line.startswith("$ ")]
    return [line for line in called if line.startswith(program)]


def stepbench(line, cwd, code=0):
    program, *arguments = shlex.split(line)
    assert program == "stepbench"
    return command.stepbench(*arguments, cwd=cwd, code=code).stdout


def test_the_first_page_is_short():
    assert len(README.splitlines()) <= LONGEST_README


def table(text):
    """The rows of a Markdown table, by its first column, each by the headings."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    [headings, *rows] = [[cell.strip() for cell in line] for line in lines]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def test_the_table_is_what_report_prints_of_the_committed_results():
    shown = table(README.partition("```")[0])
    assert len(shown) >= 10
    [caption] = [line for line in README.splitlines() if line.startswith("torch ")]
    printed = stepbench("stepbench report results --markdown --all", ROOT)
    _, found, after = printed.partition(caption)
    assert found
    whole = table(after[after.index("| combination") :].partition("\n\n")[0])
    for name, row in shown.items():
        expected = {key: whole[name][key] for key in row}
        expected["outcome"] = re.sub(r" \[\d+\]", "", expected["outcome"])
        assert row == expected


def test_links_lead_somewhere():
    for folder, text in [(ROOT, README), *((ROOT / "docs", text) for text in PAGES.values())]:
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (folder / link).exists(), link


def test_there_are_commands_to_run():
    assert {line.split()[1] for line in commands("stepbench")} >= {
        "run",
        "report",
        "list",
        "publish",
    }
    assert set(commands("make")) == {"make bench", "make test"}


LENET = blocks("python", "workloads")[0]


@pytest.mark.parametrize("line", commands("stepbench run"))
def test_run_commands(line, tmp_path):
    (tmp_path / "lenet.py").write_text(LENET, encoding="utf-8")
    small = [] if " -w " in line else ["-w", "gpt-tiny"]
    assert "baseline" in stepbench(" ".join([line, *QUICK, *small]), tmp_path)


@pytest.mark.parametrize("line", commands("stepbench gate"))
def test_gate_commands(line, tmp_path):
    source = LENET
    edited = source.replace(
        "        return self.classifier(self.features(images))\n",
        "        features = self.features(images)\n"
        "        norms = [weights.detach().norm() for weights in self.parameters()]\n"
        "        self.kept = features.detach().clone(), norms\n"
        "        return self.classifier(features)\n",
    )
    assert edited != source
    (tmp_path / "lenet.py").write_text(source, encoding="utf-8")
    who = ["-c", "user.name=Reader", "-c", "user.email=reader@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "LeNet"]):
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True)
    (tmp_path / "lenet.py").write_text(edited, encoding="utf-8")
    told = stepbench(f"{line} --time off", tmp_path, code=1)
    without_a_clock = "operators worse: 86 -> 108 (+22)"
    assert without_a_clock in told
    assert without_a_clock in README
    assert without_a_clock in PAGES["gate"]


def test_a_strangers_model_goes_through_every_axis(tmp_path):
    (tmp_path / "lenet.py").write_text(LENET, encoding="utf-8")
    outcomes = {
        "bf16": "ok",
        "tf32": "unsupported",
        "accum8": "ok",
        "ckpt1": "unsupported",
        "workers4": "ok",
        "pinned": "unsupported",
    }
    run = "stepbench run -w lenet:digits"
    table = stepbench(" ".join([run, *outcomes, *QUICK]), tmp_path)
    # Named without workers it would be a mistake; as one of an axis it is unsupported.
    table += stepbench(" ".join([run, "--vary", "prefetch", *QUICK]), tmp_path)
    outcomes["prefetch4"] = "unsupported"
    for name, outcome in outcomes.items():
        assert re.search(rf"^{name} +{outcome}", table, re.MULTILINE), name


def test_the_shown_technique_is_the_one_that_runs():
    source = (ROOT / "harness/stepbench/training/techniques/precision.py").read_text(
        encoding="utf-8"
    )
    squeezed = re.sub(r"\s+", " ", source)
    for part in blocks("python", "techniques")[0].split("\n\n\n"):
        assert re.sub(r"\s+", " ", part).strip() in squeezed


def test_the_shown_floors_end_as_shown(tmp_path):
    """Judged from records with figures like those shown: how long they measure is not the point."""
    test_file = tmp_path / "test_techniques.py"
    test_file.write_text(blocks("python", "pytest")[0], encoding="utf-8")
    base = measurement([0.048], peak_bytes=100 * MIB)
    figures = {"bf16": (0.044, 83), "ckpt1": (0.06, 66)}
    file = RunFile.create(tmp_path / "results", run())
    for name, (step_s, mebibytes) in figures.items():
        process = measurement([step_s], peak_bytes=mebibytes * MIB)
        file.add(record(case(name, workload="gpt-1m"), [(process, base)] * 6))
    file.close()
    line = [sys.executable, "-m", "pytest", "-rs", "--stepbench-results=results", str(test_file)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    (shown,) = [block for block in blocks("console") if block.startswith("$ pytest")]
    assert re.findall(r"\d+ (?:failed|passed|skipped)", done.stdout) == re.findall(
        r"\d+ (?:failed|passed|skipped)", shown
    )
    for claim in ("ckpt1 +memory", "ckpt1 +speed"):
        (row, told) = (
            re.search(rf"^{claim} .* (\w+)$", text, re.MULTILINE) for text in (done.stdout, shown)
        )
        assert row is not None
        assert told is not None
        assert row[1] == told[1]

"""What adopters look for: the licence in the built package, versions and names that agree."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_licence_is_the_declared_one_and_travels_with_the_package():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("BSD 3-Clause License")
    assert "Stepbench contributors" in text
    assert PROJECT["license"] == "BSD-3-Clause"
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])
    assert {"LICENSE", "NOTICE"} <= set(PROJECT["license-files"])


def test_the_citation_is_of_this_version():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    told = dict(line.split(": ", 1) for line in lines if re.match(r"\S+: ", line))
    assert told["version"] == PROJECT["version"] == importlib.metadata.version("stepbench")
    assert told["license"] == PROJECT["license"]


def test_the_notice_names_what_the_workloads_read():
    """The photographs that the cnn workloads decode, and the text that gpt's train on."""
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    sources = ROOT / "harness/stepbench/training/workloads"
    read = re.findall(
        r"pydoc_data\.topics|\w+\.jpg",
        "".join(path.read_text(encoding="utf-8") for path in sources.glob("*.py")),
    )
    assert {"pydoc_data.topics"} < set(read)
    assert all(name in notice for name in read), read


def test_every_measurement_version_has_its_line_in_the_changelog():
    from stepbench.versions import MEASURE_VERSION

    changed = [
        line
        for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("- **Numbers changed because**")
    ]
    told = {int(one) for line in changed for one in re.findall(r"measurement version (\d+)", line)}
    assert told == set(range(2, MEASURE_VERSION + 1))

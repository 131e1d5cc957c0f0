"""Results of several hosts and several versions of torch side by side in one repository."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from asv.config import Config

from stepbench.history import checkout
from stepbench.history.publish import publish
from stepbench.selfcheck.bare_host import _pack
from stepbench.store import RunFile
from tests.history.conftest import Toy
from tests.synthetic import MACHINE, case, measurement, record, run

BF16 = r"precision.*\('bf16'\)"
STEP_S = "precision.Precision.measure_step_s"
GPU = {"name": "H200", "memory_bytes": 2**37, "capability": "9.0", "bf16": True}
H200 = MACHINE | {"name": "1x-h200", "gpus": [GPU]}
OTHER = "2.12.0+cpu"


def packed(host: Path, *headers: dict[str, object]) -> Path:
    """The archive of a host that measured such runs, in a clone that holds results of ASV."""
    results = host / "results"
    for number, header in enumerate(headers):
        file = RunFile.create(results, run(f"20260101T00000{number}Z-{host.name}", **header))
        file.add(record(case("bf16"), [(measurement([0.01]), measurement([0.02]))] * 2))
        (file.path.parent / "machine.json").write_text(f"{host.name}'s")
    (results / "benchmarks.json").write_text(f"{host.name}'s")
    _pack(results, host / "packed.tar.gz")
    return host / "packed.tar.gz"


def test_hosts_merge_without_clashes(toy: Toy) -> None:
    toy.asv("run", "-b", BF16)
    results = toy.folder / "results"
    before = {path: path.read_bytes() for path in results.rglob("*.*")}
    for archive in (
        packed(toy.home / "aaaaaa", {"machine": H200}, {}),
        packed(toy.home / "bbbbbb", {"machine": H200}),
    ):
        with tarfile.open(archive) as opened:
            opened.extractall(toy.folder, filter="data")

    assert {path: path.read_bytes() for path in before} == before  # ASV's own files among them
    (own,) = (path.stem for path in before if path.suffix == ".jsonl")
    assert {(file.run.machine["name"], file.run.id[-6:]) for file in toy.runs()} == {
        ("1x-h200", "aaaaaa"),
        ("1x-h200", "bbbbbb"),
        (MACHINE["name"], "aaaaaa"),
        (MACHINE["name"], own[-6:]),
    }
    page = (publish(toy.folder) / "techniques/techniques.html").read_text()
    assert page.count("<h2>") == 3  # both workloads of the CPU, the GPU's once
    assert "H200" in page


def renamed(toy: Toy, torch: str) -> str:
    """The environment's name under another version of torch."""
    conf = Config.load(str(toy.folder / "asv.conf.json"))
    environment = checkout.Checkout(conf, checkout._python(), {}, {})
    assert environment._requirements == {"torch": torch}
    return str(environment.name)


def test_two_versions_of_torch_stand_side_by_side(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.asv("run", "-b", BF16)
    ours = toy.runs()[0].run.software["torch"]
    monkeypatch.chdir(toy.folder)
    monkeypatch.setattr(checkout, "version", lambda _: OTHER)
    name = renamed(toy, OTHER)
    assert name == f"checkout-py{checkout._python()}-torch{OTHER}"

    # What a host with the other torch stores of the same commit.
    (path,) = (toy.folder / "results").glob("*/*-checkout-*.json")
    saved = json.loads(path.read_text())
    known = saved["requirements"]["torch"]
    saved = json.loads(path.read_text().replace(known, OTHER))
    assert saved["env_name"] == name
    column = saved["result_columns"].index("result")
    saved["results"][STEP_S][column] = [None, None, None, 0.5]
    path.with_name(f"{saved['commit_hash'][:8]}-{name}.json").write_text(json.dumps(saved))
    software = {"torch": OTHER, "stepbench_digest": "0"}
    commit = toy.git("rev-parse", "HEAD")
    theirs = RunFile.create(toy.folder / "results", run(software=software, commit=commit))
    for of in (one.case for one in toy.runs()[-1].records):
        theirs.add(record(of, [(measurement([0.5]), measurement([1.0]))]))

    html = publish(toy.folder)
    versions = json.loads((html / "index.json").read_text())["params"]["torch"]
    assert sorted(versions) == sorted([OTHER, known])
    for version, step_s in ((OTHER, 0.5), (known, 0.01)):
        (graph,) = html.glob(f"graphs/**/torch-{version}/{STEP_S}.json")
        assert json.loads(graph.read_text())[0][1][-1] == pytest.approx(step_s, rel=0.02)

    page = (html / "techniques/techniques.html").read_text()
    assert f"Earlier: commit {commit[:10]}, torch {OTHER}" in page

    compare = ("report", "--compare", f"torch={OTHER}", f"torch={ours}")
    said = stepbench(toy.folder, *compare)
    assert f"compared: torch: {OTHER} against {ours}" in said
    assert re.search(r" ~?0\.0(19|20|21)x ", said)  # 0.01 s in the toy, give or take 1%
    with (theirs.path.parent / "again.jsonl").open("w") as again:  # the same of an older commit
        again.write(theirs.path.read_text().replace(commit, "0" * 40).replace("-01-31T", "-02-28T"))
    assert f"not comparable: commit: commit {'0' * 10}" in stepbench(toy.folder, *compare, code=2)


def stepbench(folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "stepbench"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr

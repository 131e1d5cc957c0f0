"""The script for a host without a network: limited time, resumed, packed, told what is missing."""

import ast
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from stepbench.cli.main import run
from stepbench.selfcheck import bare_host as module
from stepbench.selfcheck.host_steps import RUN, STEPS, Step
from stepbench.store import read_all
from stepbench.training.choice import sweep_of
from stepbench.training.workloads import canonical

QUICK = ("accum2", "-w", "gpt-tiny", "-r", "1", "--steps", "1", "--commit", "abc")
ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = "stepbench-results.tar.gz"
# A list of three: one that ends, one that measures for a while, one that fails.
LISTED = """
import sys
from stepbench.selfcheck import bare_host
from stepbench.selfcheck.host_steps import RUN, Step

def step(name, command):
    return Step(name=name, gpu=command, cpu=command, limit_s=300)

bare_host.PACK_EVERY_S = 0.2
measured = "accum2 accum4 -w gpt-tiny --rounds 1 --steps 3"
steps = (
    step("first", "-c 'print(40 + 2)'"),
    step("measured", RUN + measured),
    step("last", "-c 'raise SystemExit(5)'"),
)
sys.exit(bare_host.main(sys.argv[1:], steps))
"""


def bare_host(*arguments, cwd, isolated=False):
    flags = ["-I", "-S"] if isolated else []
    script = str(ROOT / "harness/stepbench/selfcheck/bare_host.py")
    return subprocess.run(
        [sys.executable, *flags, script, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_a_run_in_limited_time_goes_on_and_is_packed(tmp_path):
    first = bare_host("--minutes", "0", "--", *QUICK, cwd=tmp_path)
    assert first.returncode == 3, first.stderr
    second = bare_host("--minutes", "5", "--", *QUICK, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    home = tmp_path / "home"
    with tarfile.open(tmp_path / "stepbench-results.tar.gz") as packed:
        packed.extractall(home, filter="data")
    [file], problems = read_all(home / "results")
    assert problems == []
    assert file.run.commit == "abc"
    assert [str(one.case.combination) for one in file.records] == ["baseline", "accum2"]


def test_what_is_missing_is_one_line(tmp_path):
    done = bare_host("--", *QUICK, cwd=tmp_path, isolated=True)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("stepbench: this host lacks torch, click, numpy")


def test_wheels_are_installed_without_a_network(tmp_path, monkeypatch):
    wheel = tmp_path / "wheels" / "carried-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("carried.py", "here = True\n")
        packed.writestr(
            "carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n"
        )
        packed.writestr(
            "carried-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        packed.writestr("carried-1.0.dist-info/RECORD", "")
    module._install(wheel.parent, tmp_path / "site")
    assert (tmp_path / "site" / "carried.py").read_text() == "here = True\n"


def listed(cwd, *arguments):
    command = [sys.executable, "-c", LISTED, "--minutes", "5", "--commit", "abc", *arguments]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT / "harness")},
        stdout=subprocess.PIPE,
        text=True,
    )


def packed(archive, ending):
    """The text of the archive's members whose names end so, however much of it is there."""
    if not archive.exists():
        return ""
    with tarfile.open(archive) as opened:
        return "".join(
            opened.extractfile(one).read().decode()
            for one in opened.getmembers()
            if one.name.endswith(ending)
        )


def eventually(holds):
    until = time.monotonic() + 300
    while not (seen := holds()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_list_that_is_cut_off_goes_on_from_its_archive_on_another_host(tmp_path, how):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    call = listed(one)
    eventually(lambda: '"kind": "record"' in packed(one / ARCHIVE, ".jsonl"))
    call.send_signal(how)
    call.communicate(timeout=300)
    assert call.returncode == (3 if how == signal.SIGTERM else -how)
    with tarfile.open(one / ARCHIVE) as opened:
        opened.extractall(other, filter="data")
    again = listed(other)
    shown, _ = again.communicate(timeout=600)
    assert again.returncode == 1, shown
    codes = {line["step"]: line["exit_code"] for line in journal(other)}
    assert codes == {"first": 0, "measured": 0, "last": 5}
    assert packed(other / ARCHIVE, "first.log") == "42\n"  # once, on the first host
    [file], problems = read_all(other / "results")
    assert problems == []
    assert [str(record.outcome) for record in file.records] == ["ok"] * 3
    report = [sys.executable, "-m", "stepbench", "report", str(other / "results")]
    assert "accum4" in subprocess.run(report, capture_output=True, text=True, check=True).stdout
    # What a killed call leaves behind ends by itself, and takes back what it was at.
    [left] = (one / "results").glob("*/*.jsonl")
    eventually(lambda: not begun(left.read_text()))


def begun(text):
    kinds = [json.loads(line)["kind"] for line in text.splitlines()]
    return kinds.count("begin") - kinds.count("record") - kinds.count("withdrawn")


def journal(folder):
    [file] = (folder / "results").glob("bare-host/*/steps.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def host(folder, seconds=60.0):
    return module.Host(
        environ=dict(os.environ),
        has_gpu=False,
        results=folder,
        folder=folder,
        archive=folder / ARCHIVE,
        commit=None,
        until_s=time.monotonic() + seconds,
    )


def test_what_a_step_has_printed_outlives_its_death(tmp_path):
    command = [sys.executable, "-c", "import os; print(42); os._exit(1)"]
    environ = module._environ(tmp_path)
    assert subprocess.run(command, env=environ, capture_output=True, check=False).stdout == b"42\n"


def test_a_step_that_is_not_there_cannot_be_repeated(tmp_path, capsys):
    steps = [step("one", "-c pass"), step("two", "-c pass")]
    assert module.main(["--again", "one", "thre"], steps) == 2
    assert capsys.readouterr().err == "stepbench: --again thre: there are one, two\n"


def test_what_the_steps_import_is_what_a_host_needs():
    imported = set()
    for path in (ROOT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    # What is optional, and what draws pages, keeps a history or asserts in a test suite.
    elsewhere = {"PIL", "bitsandbytes", "peft", "torchao", "asv", "asv_runner", "plotly", "pytest"}
    assert imported - sys.stdlib_module_names - elsewhere - {"stepbench"} == set(module.NEEDED)


def test_what_is_packed_may_vanish_meanwhile(tmp_path, monkeypatch):
    kept, gone = tmp_path / "kept.jsonl", tmp_path / "gone.jsonl"
    kept.write_text("{}\n")
    monkeypatch.setattr(Path, "rglob", lambda *_: [kept, gone])
    module._pack(tmp_path, tmp_path / ARCHIVE)
    with tarfile.open(tmp_path / ARCHIVE) as opened:
        assert opened.getnames() == ["results/kept.jsonl"]


def step(name, command, limit_s=300.0):
    return Step(name=name, gpu=command, cpu=command, limit_s=limit_s)


STUBBORN = "-c 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)'"


@pytest.mark.parametrize(
    ("limit_s", "left_s", "code"),
    [(1.0, 60.0, module.TOOK_TOO_LONG), (60.0, 1.0, module.TIME_RAN_OUT)],
)
def test_a_step_ends_at_its_limit_and_with_the_call(tmp_path, monkeypatch, limit_s, left_s, code):
    monkeypatch.setattr(module, "WITHDRAW_S", 0.5)
    here = host(tmp_path, left_s)
    assert module._run(here, step("stubborn", STUBBORN, limit_s)) == code
    [line] = [json.loads(one) for one in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert line["exit_code"] == code
    assert here.ended() == ({"stubborn": code} if code == module.TOOK_TOO_LONG else {})


def test_steps_run_in_order_once_or_again_while_there_is_time(tmp_path, monkeypatch):
    ran = []

    def done(here, one):
        ran.append(one.name)
        here.note(one, 0, 1.0)
        return 0

    monkeypatch.setattr(module, "_run", done)
    steps = [step(name, "-c pass") for name in ("one", "two", "three")]
    assert module._walk(host(tmp_path), steps[:2], []) == 0
    assert module._walk(host(tmp_path, seconds=1.0), steps, []) == module.TIME_RAN_OUT
    assert module._walk(host(tmp_path), steps, ["one"]) == 0
    assert ran == ["one", "two", "one", "three"]


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (b'{"kind": "run"}\n{"kind": "begin"}\n', b'{"kind": "run"}\n'),
        (b'{"kind": "run"}\n{"kind": "beg', b'{"kind": "run"}\n'),
        (b'{"kind": "begin"}\n{"kind": "record"}\n', b'{"kind": "begin"}\n{"kind": "record"}\n'),
        (b"", b""),
        (b'{"kind": "record"}\ntorn\n', b'{"kind": "record"}\ntorn\n'),
        (b'{"at": 1}\n[2]\n', b'{"at": 1}\n[2]\n'),
    ],
)
def test_what_is_packed_holds_no_case_that_has_only_begun(lines, kept):
    assert module._settled(lines) == kept


def test_the_card_s_limits_and_clocks_are_printed(tmp_path, monkeypatch, capsys):
    told = "    Product Name : NVIDIA H100\n    Serial : 1\n        Max Power Limit : 700 W\n"
    told += "        SM                : 1980 MHz\n        Bus : 3\n"
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\ncat <<'END'\n{told}END\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert module._gpu() == told
    printed = capsys.readouterr().out
    assert [line.split(" :")[0].strip() for line in printed.splitlines()] == [
        "Product Name",
        "Max Power Limit",
        "SM",
    ]


def test_a_driver_that_hangs_does_not_hang_the_call(tmp_path, monkeypatch, capsys):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "NVIDIA_SMI_S", 0.2)
    assert module._gpu() == ""
    assert capsys.readouterr().out == "nvidia-smi gave no answer in 0.2 s\n"


def test_without_nvidia_smi_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._gpu() == ""
    assert capsys.readouterr().out == "nvidia-smi is not here\n"


@pytest.mark.parametrize("one", [one for one in STEPS if one.gpu.startswith(RUN)])
@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_list_names_what_there_is(one, has_gpu):
    command = one.command(has_gpu=has_gpu, results=Path("a b"), commit="abc", seconds=90)
    assert command[:3] == ["-m", "stepbench", "run"]
    asked = run.make_context("run", command[3:]).params
    assert (asked["results"], asked["minutes"], asked["commit"]) == (Path("a b"), 1.0, "abc")
    assert sweep_of(canonical(asked["workload"]), asked["combinations"], (), ranks=[1], weak=False)

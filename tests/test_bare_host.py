"""The script for a host without a network: limited time, resumed, packed, told what is missing."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from harness.store import read_all

QUICK = ("accum2", "-w", "gpt-tiny", "-r", "1", "--steps", "1", "--commit", "abc")
ROOT = Path(__file__).resolve().parents[1]


def bare_host(*arguments, cwd, isolated=False):
    flags = ["-I", "-S"] if isolated else []
    script = str(ROOT / "harness" / "bare_host.py")
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
    assert line.startswith("stepbench: this host lacks torch, click, psutil")


def test_wheels_are_installed_without_a_network(tmp_path, monkeypatch):
    from harness import bare_host as module

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

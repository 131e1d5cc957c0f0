"""Deaths, hangs and shortage, injected for real: an outcome each, nothing left behind."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from stepbench.measuring import worker
from stepbench.measuring.measure import measure
from stepbench.measuring.process import in_child
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import measure_once, open_sweep
from stepbench.records.case import Case
from stepbench.store import RunFile
from stepbench.training import build as build_module
from stepbench.training.techniques import parse
from tests.command import stepbench

ONE_STEP = Settings(rounds=1, extra_rounds=0, max_steps=1, min_steps=1)


def planted(monkeypatch, fault, when=lambda site: True):
    """Let `fault(loop)` edit the built loop in every worker whose site says so."""
    real = build_module.plain_loop

    def faulty(model, optimizer, site):
        loop = real(model, optimizer, site)
        return fault(loop) if when(site) else loop

    monkeypatch.setattr(build_module, "plain_loop", faulty)


def on_accumulation(site):
    return site.plan.micro_batches > 1


def killing(loop):
    return replace(loop, update=lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_killed_case_is_an_outcome_and_the_next_one_runs(monkeypatch, tmp_path):
    planted(monkeypatch, killing, on_accumulation)
    file = open_sweep(tmp_path, ONE_STEP, project=tmp_path)
    killed = measure_once(file, Case(workload="gpt-tiny", combination=parse("accum2")))
    assert killed.outcome.kind == "failed"
    assert "killed by SIGKILL" in killed.outcome.reason
    following = measure_once(file, Case(workload="gpt-tiny", combination=parse("ckpt1")))
    assert following.outcome.ok
    again, problems = RunFile.read(file.path)
    assert [one.outcome.kind for one in again.records] == ["failed", "ok"]
    assert problems == []


def test_a_baseline_that_dies_is_told_as_such(monkeypatch, machine):
    planted(monkeypatch, killing, lambda site: not on_accumulation(site))
    record = measure(Case(workload="gpt-tiny", combination=parse("accum2")), ONE_STEP, machine)
    assert record.outcome.reason.startswith("its baseline gave no number: failed")


def test_a_hang_ends_at_the_deadline(monkeypatch, machine):
    planted(monkeypatch, lambda loop: replace(loop, update=lambda: time.sleep(1000)))
    began = time.monotonic()
    settings = replace(ONE_STEP, deadline_s=3)
    record = measure(Case(workload="gpt-tiny"), settings, machine)
    assert time.monotonic() - began < 60
    assert record.outcome.kind == "failed"
    assert "deadline of 3 s" in record.outcome.reason


@pytest.mark.parametrize("phase", ["forward", "backward", "update"])
def test_an_exception_is_told_with_its_phase_and_place(monkeypatch, machine, phase):
    def fault(loop):
        def raising(*_):
            raise ValueError("first line\nsecond line")

        raising.__code__ = raising.__code__.replace(co_name=phase)
        return replace(loop, **{phase: raising})

    planted(monkeypatch, fault)
    outcome = measure(Case(workload="gpt-tiny"), ONE_STEP, machine).outcome
    assert (outcome.kind, outcome.phase) == ("failed", phase)
    assert outcome.reason.startswith("ValueError: first line (test_faults.py:")


@pytest.mark.parametrize(
    ("workload", "phase"),
    # Parameters alone exceed the limit; then only the activations do.
    [("gpt-124m@seq=16,batch=2", "build"), ("gpt-1m@seq=1024,batch=256", "forward")],
)
def test_out_of_memory_is_an_outcome_with_its_phase(monkeypatch, machine, workload, phase):
    real = worker.memory.memory_probe

    def starved(device):
        held = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (held + 300 * 2**20, -1))
        return real(device)

    monkeypatch.setattr(worker.memory, "memory_probe", starved)
    outcome = measure(Case(workload=workload), ONE_STEP, machine).outcome
    assert (outcome.kind, outcome.phase) == ("oom", phase), outcome


def test_a_wrong_tree_is_refused(monkeypatch, machine, tmp_path):
    (tmp_path / "harness" / "stepbench").mkdir(parents=True)
    monkeypatch.setenv("STEPBENCH_PROJECT_TREE", str(tmp_path))
    outcome = measure(Case(workload="gpt-tiny"), ONE_STEP, machine).outcome
    assert outcome.kind == "failed"
    assert f"not from the commit's tree {tmp_path}" in outcome.reason
    monkeypatch.setenv("STEPBENCH_PROJECT_TREE", str(Path(worker.__file__).parents[3]))
    assert measure(Case(workload="gpt-tiny"), ONE_STEP, machine).outcome.ok


def test_a_child_may_answer_with_nothing_or_fail():
    silent = in_child(lambda: None, deadline_s=60)
    assert (silent.answer, silent.death) == (None, None)
    assert in_child(os._exit, 7, deadline_s=60).death == (
        "the process ended with exit code 7 and no answer"
    )

    def dying():
        os.write(1, b"some words\nlast words\n")
        os.kill(os.getpid(), signal.SIGTERM)

    said = in_child(dying, deadline_s=60)
    assert said.death == "the process was killed by SIGTERM (its last line: last words)"


def test_grandchildren_die_with_the_case():
    def work():
        return subprocess.Popen(["sleep", "600"]).pid

    pid = in_child(work, deadline_s=60).answer
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the grandchild lives on"
        time.sleep(0.02)


def waiting_case(tmp_path):
    """A process that measures a case that hangs, after one that is quick."""
    program = textwrap.dedent(f"""
        import sys, time
        from dataclasses import replace
        from pathlib import Path
        from stepbench.training import build as build_module
        real = build_module.plain_loop
        def slow(model, optimizer, site):
            loop = real(model, optimizer, site)
            if site.plan.micro_batches == 1:
                return loop
            print("hanging", flush=True)
            Path({str(tmp_path / "hanging")!r}).write_text("")
            return replace(loop, update=lambda: time.sleep(1000))
        build_module.plain_loop = slow
        from stepbench.cli import main as cli
        sys.argv = ["stepbench", "run", "ckpt1", "accum2", "-w", "gpt-tiny", "-r", "1",
                    "--results", {str(tmp_path / "results")!r}]
        cli.main()
    """)
    running = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "hanging").exists():
        assert time.monotonic() < deadline, "the case never started"
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    children = psutil.Process(running.pid).children(recursive=True)
    assert children
    return running, children


def the_only_run(tmp_path):
    [path] = (tmp_path / "results").glob("*/*.jsonl")
    return RunFile.read(path)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_loses_at_most_the_running_case(tmp_path, how):
    running, children = waiting_case(tmp_path)
    running.send_signal(how)
    _, told = running.communicate(timeout=120)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, "a worker outlived the run"
    file, problems = the_only_run(tmp_path)
    assert problems == []
    assert [str(one.case.combination) for one in file.records] == ["baseline", "ckpt1"]

    if how == signal.SIGINT:
        assert running.returncode == 130
        assert told.splitlines()[-1] == "stepbench: stopped; the same command goes on from here"
        assert file.cases_begun == []
        expected, code = "ok", 0
    else:
        assert [str(case.combination) for case in file.cases_begun] == ["accum2"]
        expected, code = "failed: the measuring process itself died", 1
    options = ("-w", "gpt-tiny", "-r", "1", "--results", str(tmp_path / "results"))
    stepbench("run", "ckpt1", "accum2", *options, cwd=Path.cwd(), code=code)
    file, _ = the_only_run(tmp_path)
    assert [str(one.case.combination) for one in file.records] == ["baseline", "ckpt1", "accum2"]
    assert str(file.records[-1].outcome).startswith(expected)
    assert file.closed


def test_a_death_is_noticed_though_a_grandchild_lives_on():
    def orphaning():
        if os.fork() == 0:
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)

    began = time.monotonic()
    assert "killed by SIGKILL" in in_child(orphaning, deadline_s=300).death
    assert time.monotonic() - began < 100

"""The plug-in as a user meets it: whole test files, run by pytest, and what it prints of them."""

import re
from pathlib import Path

import psutil

from stepbench.records.outcome import Outcome
from stepbench.store import RunFile
from stepbench.versions import MEASURE_VERSION
from tests.synthetic import MACHINE, MIB, case, measurement, record, run

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]

GPU = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * 2**30}
H100 = MACHINE | {"name": "1x-nvidia-h100-80gb-hbm3", "gpus": [GPU]}
WORKLOAD = "gpt-1m@batch=16"
HEADER = f"""
import pytest

pytestmark = pytest.mark.stepbench(workload={WORKLOAD!r}, machine="cuda", results="results")
"""
NEEDS = ("torch", "numpy", "scipy", "click", "psutil", "tabulate")


def ratio(speed, memory=0.5, disturbances=()):
    """One round: the case that many times as fast as its baseline, in that share of its memory."""
    mine = measurement([0.1 / speed], peak_bytes=int(memory * 100 * MIB), disturbances=disturbances)
    return mine, measurement([0.1])


def store(pytester, records, identity="20260131T120000Z-abcdef", machine=H100, **changes):
    header = run(identity, machine=machine, **changes)
    file = RunFile.create(pytester.path / "results", header)
    for names, rounds in records.items():
        outcome = rounds if isinstance(rounds, Outcome) else Outcome(kind="ok")
        pairs = [] if isinstance(rounds, Outcome) else rounds
        file.add(record(case(names, workload=WORKLOAD), pairs, outcome=outcome))
    file.close()


def results(pytester, body, *arguments, header=HEADER):
    pytester.makepyfile(header + body)
    return pytester.runpytest_subprocess("-rsP", *arguments)


def mistake(done, test):
    """The one line that pytest prints of a test between two headings."""
    (text,) = re.findall(rf"^_+ (?:ERROR at setup of )?{test} _+$\n(.*?)^[_=]", done, re.M | re.S)
    (line,) = text.strip().splitlines()
    return line


def test_stored_records_hold_fail_or_cannot_tell(pytester):
    store(
        pytester,
        {
            "bf16": [ratio(speed) for speed in (1.9, 2.0, 2.0, 2.1, 2.1, 2.2)],
            "fp16": [ratio(2.0)] * 5,
            "ckpt1": [ratio(0.8), ratio(0.1, disturbances=["somebody"])] + [ratio(0.8)] * 6,
            "ckpt2": Outcome(kind="oom", phase="forward", reason="80 GiB"),
            "tf32": Outcome(kind="unsupported", reason="too old"),
        },
    )
    done = results(
        pytester,
        """
def test_holds(floor):
    floor("bf16").speed(at_least=1.5).memory(at_most=0.6)

def test_fails(floor):
    floor("bf16").speed(at_least=3).memory(at_most=0.6)

def test_cannot_tell(floor):
    floor("bf16").speed(at_least=2)

def test_too_few_rounds(floor):
    floor("fp16").speed(at_least=1.5)

def test_a_failure_is_told_before_what_cannot_be_told(floor):
    floor("bf16").speed(at_least=2)
    floor("fp16").memory(at_most=0.3)

def test_disturbed_rounds_are_left_out(floor):
    floor("ckpt1").speed(at_least=0.7)

def test_out_of_memory(floor):
    floor("ckpt2").memory(at_most=0.6)

def test_unsupported(floor):
    floor("tf32").speed(at_least=1.1)

def test_not_recorded(floor):
    floor("accum4").speed(at_least=0.9)

@pytest.mark.stepbench(machine="A100")
def test_another_machine(floor):
    floor("bf16").speed(at_least=1.5)

@pytest.mark.stepbench(torch=">=2.14")
def test_another_torch(floor):
    floor("bf16").speed(at_least=1.5)

def test_no_torch_was_imported():
    import sys
    assert "torch" not in sys.modules
""",
    )
    done.assert_outcomes(passed=3, failed=3, skipped=6)
    text = done.stdout.str()
    for line in (
        "fails: bf16 speed 2.05x [1.9, 2.2] over 6 rounds, claimed at least 3x "
        f"({WORKLOAD} on {H100['name']})",
        f"recorded 2026-01-31 12:00 UTC in run 20260131T120000Z-abcdef, commit 0123456789, torch "
        f"2.13.0+cpu, ruler {MEASURE_VERSION}",
        f"fails: fp16 memory 0.5x over 5 rounds, claimed at most 0.3x ({WORKLOAD} on "
        f"{H100['name']})",
        f"fails: ckpt2 memory, claimed at most 0.6x: oom in forward: 80 GiB ({WORKLOAD} on "
        f"{H100['name']})",
    ):
        assert line in text.splitlines()
    for reason in (
        "inconclusive: bf16 speed 2.05x [1.9, 2.2] over 6 rounds, claimed at least 2x: the "
        "interval lies on both sides",
        "inconclusive: fp16 speed 2x over 5 rounds, claimed at least 1.5x: an interval needs 6 "
        "rounds, there are 5",
        "unsupported: tf32 speed, claimed at least 1.1x: too old",
        f"inconclusive: accum4 speed, claimed at least 0.9x: no record of {WORKLOAD} accum4 in",
        f"asks for the machine A100; {pytester.path / 'results'} holds {H100['name']} (cuda)",
        f"asks for torch >=2.14; {pytester.path / 'results'} holds 2.13.0+cpu",
    ):
        assert re.search(rf"^SKIPPED \[1\] test_\w+.py:\d+: {re.escape(reason)}", text, re.M)
    assert "8 rounds, 1 disturbed left out" in text
    assert "Traceback" not in text
    assert "During handling" not in text


def test_strict_fails_what_cannot_be_told_and_nothing_else(pytester):
    store(pytester, {"fp16": [ratio(2.0)] * 5}, measure_version=MEASURE_VERSION)
    older = {"measure_version": MEASURE_VERSION - 1, "machine": MACHINE}
    store(pytester, {"fp16": [ratio(2.0)] * 6}, "20260131T120000Z-000001", **older)
    pytester.makeini("[pytest]\nstepbench_strict = true")
    done = results(
        pytester,
        """
def test_cannot_tell(floor):
    floor("fp16").speed(at_least=1.5)

@pytest.mark.stepbench(machine="cpu")
def test_another_ruler(floor):
    floor("fp16").speed(at_least=1.5)

@pytest.mark.stepbench(machine="A100")
def test_another_machine(floor):
    floor("fp16").speed(at_least=1.5)
""",
    )
    done.assert_outcomes(failed=1, errors=1, skipped=1)
    text = done.stdout.str()
    assert mistake(text, "test_another_ruler").startswith(
        f"inconclusive: not comparable: measurement version: {MEASURE_VERSION - 1} in "
    )
    assert "an interval needs 6 rounds, there are 5" in text


def test_the_newest_run_is_judged_and_unlike_machines_are_refused(pytester):
    store(pytester, {"bf16": [ratio(1.0)] * 6}, "20260101T120000Z-000001")
    store(pytester, {"bf16": [ratio(2.0)] * 6}, "20260201T120000Z-000002")
    store(pytester, {"bf16": [ratio(3.0)] * 6}, "20260301T120000Z-000003", MACHINE)
    other = MACHINE | {"name": "other-cpu", "cpu": "Other CPU"}
    store(pytester, {"bf16": [ratio(4.0)] * 6}, "20260401T120000Z-000004", other)
    with open(
        pytester.path / "results" / "other-cpu" / "20260401T120000Z-000004.jsonl", "a"
    ) as end:
        end.write('{"kind": "record", "rec')
    done = results(
        pytester,
        """
def test_newest(floor):
    floor("bf16").speed(at_least=1.5, at_most=2.5)

@pytest.mark.stepbench(machine="cpu")
def test_unlike(floor):
    floor("bf16").speed(at_least=1.5)

@pytest.mark.stepbench(machine="other-cpu")
def test_by_name(floor):
    floor("bf16").speed(at_least=3.5)
""",
        "--stepbench-results=results",
        header=HEADER.replace('"results"', '"nowhere"'),
    )
    done.assert_outcomes(passed=2, errors=1, warnings=1)
    assert "is torn, damaged or of a newer stepbench, and was left out" in done.stdout.str()
    assert mistake(done.stdout.str(), "test_unlike") == (
        "stepbench: machine='cpu' fits machines that are not alike (test-cpu-2-cores and "
        "other-cpu): cpu: Test CPU against Other CPU; name one of them in machine=, or its folder "
        "in results="
    )


def test_mistakes_are_one_line_each(pytester):
    store(pytester, {"bf16": [ratio(2.0)] * 6})
    done = results(
        pytester,
        """
@pytest.mark.stepbench("bf16", machin="cuda")
def test_marker(floor):
    floor("bf16").speed(at_least=1.5)

@pytest.mark.stepbench(machine=3)
def test_no_text(floor):
    floor("bf16").speed(at_least=1.5)

@pytest.mark.stepbench(torch="2.13")
def test_version(floor):
    floor("bf16").speed(at_least=1.5)

@pytest.mark.stepbench(results="nowhere")
def test_folder(floor):
    floor("bf16").speed(at_least=1.5)

@pytest.mark.stepbench(workload="gpt-2m")
def test_workload(floor):
    floor("bf16").speed(at_least=1.5)

def test_technique(floor):
    floor("bf17").speed(at_least=1.5)

def test_bound(floor):
    floor("bf16").speed(at_least=0)

def test_nothing(floor):
    floor("bf16")
""",
    )
    done.assert_outcomes(errors=4, failed=4)
    text = done.stdout.str()
    for test, line in {
        "test_marker": "the marker stepbench does not know 'bf16', machin; it takes workload=, "
        "machine=, torch=, results=",
        "test_no_text": "the marker stepbench has machine=3: it must be text",
        "test_version": "the marker stepbench has torch='2.13': write it as in a requirement, "
        "'>=2.12' or '==2.13.*'",
        "test_folder": f"{pytester.path / 'nowhere'}: no readable run there; `stepbench run` makes "
        "one",
        "test_workload": "'gpt-2m' is not a workload; there are ",
        "test_technique": "'bf17' is not a technique; there are ",
        "test_bound": "bf16: speed at_least=0: a bound is a number above 0, in multiples of the "
        "baseline's (0.5: half of it)",
        "test_nothing": "nothing is claimed; say what must hold, as "
        "floor('bf16').speed(at_least=1.5)",
    }.items():
        assert mistake(text, test).startswith(f"stepbench: {line}")


OWN = """
import torch
from torch import nn

from stepbench import Workload


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        drawn = torch.randn(64, generator=torch.Generator().manual_seed(index))
        return drawn, drawn.flip(0)


def small():
    return Workload(
        model=lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)),
        dataset=Pairs,
        loss=nn.functional.mse_loss,
        global_batch=8,
    )
"""


def test_live_in_a_suite_that_trains_itself(pytester):
    """Operators on several threads, here, are what a fork of the tests' process would hang on."""
    pytester.makepyfile(own=OWN)
    done = results(
        pytester,
        """
import torch
from own import small

def test_training(floor):
    torch.set_num_threads(2)
    model = small().model()
    model(torch.randn(512, 64)).sum().backward()
    floor("accum4").ratio("saved_bytes", at_most=0.3).count("forwards", at_least=4, at_most=4)

def test_too_much(floor):
    floor("accum4").ratio("saved_bytes", at_most=0.2)

@pytest.mark.stepbench(machine="ENIAC")
def test_elsewhere(floor):
    floor("accum4").ratio("saved_bytes", at_most=0.2)
""",
        header='import pytest\n\npytestmark = pytest.mark.stepbench(workload="own:small")\n',
    )
    done.assert_outcomes(passed=1, failed=1, skipped=1)
    text = done.stdout.str()
    assert text.count("measured now beside its baseline") == 2
    assert "asks for the machine ENIAC; this is " in text
    left = [one.cmdline() for one in psutil.process_iter() if one.status() != psutil.STATUS_ZOMBIE]
    assert not [line for line in left if any(str(pytester.path) in word for word in line)]


def test_the_cuda_floors_of_this_project_are_spelled_right(pytester):
    """On a CPU they are skipped before they claim anything; here there is a GPU without records."""
    store(pytester, {"bf16": [ratio(2.0)] * 6})
    done = pytester.runpytest_subprocess(
        ROOT / "tests/floors/test_cuda.py", "-rs", "--stepbench-results=results"
    )
    floors = done.parseoutcomes()
    assert set(floors) == {"skipped"}
    assert done.stdout.str().count("no record of gpt-124m ") >= 6


def test_a_suite_that_does_not_use_it_pays_nothing(pytester):
    pytester.makepyfile(f"""
import sys

def test_nothing():
    assert "stepbench.thresholds.plugin" in sys.modules
    assert not [name for name in {NEEDS} if name in sys.modules]
    assert not [name for name in sys.modules if name.startswith("stepbench.j")]
""")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_what_importing_it_takes(pytester):
    """Printed, never asserted: `pytest -s` shows it, README quotes it."""
    code = "import pytest, stepbench.thresholds.plugin"
    done = pytester.run("python", "-X", "importtime", "-c", code)
    (line,) = [one for one in done.errlines if one.endswith("stepbench.thresholds.plugin")]
    microseconds = int(line.split("|")[1])
    print(f"importing the plug-in takes {microseconds / 1e3:.1f} ms")
    assert microseconds > 0

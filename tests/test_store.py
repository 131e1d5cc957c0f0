"""What the store promises: nothing stored is lost, and what cannot be read is told."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from stepbench.errors import StepbenchError
from stepbench.records.run import Calibration, Record
from stepbench.store import DIED, RunFile, open_run, read_all, read_path
from tests.synthetic import case, measurement, record, run

BF16 = record(case("bf16"), [(measurement([0.05]), measurement([0.1]))])
CKPT = record(case("ckpt2"), [(measurement([0.12]), measurement([0.1]))])


def lines_of(file):
    return file.path.read_bytes().splitlines(keepends=True)


def test_everything_written_is_read_back(tmp_path):
    strange = record(case("fp16"), [(measurement(losses=[math.inf, 1.0]), measurement())])
    calibration = Calibration(
        measured_at="2026-01-31T12:00:00+00:00",
        matmul_dtype="float32",
        matmul_flops_per_s=1e11,
        memory_bytes_per_s=1e10,
        host_to_device_bytes_per_s=None,
    )
    written = RunFile.create(tmp_path, run())
    for one in (BF16, strange):
        written.begin(one.case)
        written.add(one)
    written.calibrate(calibration)
    written.close()
    read, problems = RunFile.read(tmp_path / "test-cpu-2-cores" / f"{run().id}.jsonl")
    assert read == written
    assert (problems, read.cases_begun) == ([], [])
    assert read.find(case("bf16")) == BF16
    assert read.find(case("tf32")) is None


def test_nan_survives(tmp_path):
    file = RunFile.create(tmp_path, run())
    file.add(record(case("fp16"), [(measurement(losses=[math.nan, 4.0]), measurement())]))
    read, _ = RunFile.read(file.path)
    assert math.isnan(read.records[0].rounds[0].case.losses[0])


def test_a_torn_last_line_loses_itself_only_and_the_next_line_is_whole(tmp_path):
    file = RunFile.create(tmp_path, run())
    file.add(BF16)
    file.add(CKPT)
    file.path.write_bytes(file.path.read_bytes()[:-100])
    read, problems = RunFile.read(file.path)
    assert read.records == [BF16]
    assert len(problems) == 1
    assert "line 3 is torn" in problems[0]
    read.add(CKPT)
    again, problems = RunFile.read(file.path)
    assert again.records == [BF16, CKPT]
    assert len(problems) == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff\xfe garbage",
        b'{"no": "kind"}',
        b"[1, 2]",
        b"7",
        b'{"kind": "dream"}',
        b'{"kind": "record", "record": {"case": null}}',
        b'{"kind": "record", "record": null}',
        b'{"kind": "withdrawn", "case": {}}',
    ],
)
def test_a_damaged_middle_line_is_told_and_the_rest_is_read(tmp_path, damage):
    file = RunFile.create(tmp_path, run())
    file.add(BF16)
    file.add(CKPT)
    header, _, last = lines_of(file)
    file.path.write_bytes(header + damage + b"\n" + last)
    read, problems = RunFile.read(file.path)
    assert read.records == [CKPT]
    assert len(problems) == 1
    assert f"{file.path}: line 2" in problems[0]


def test_fields_of_a_newer_version_are_left_out_and_told_once(tmp_path):
    file = RunFile.create(tmp_path, run())
    newer = BF16.to_json() | {"colour": "blue"}
    newer["outcome"] |= {"mood\x1b": "good"}
    line = json.dumps({"kind": "record", "record": newer}).encode() + b"\n"
    file.path.write_bytes(lines_of(file)[0] + 2 * line)
    read, problems = RunFile.read(file.path)
    assert read.records == [BF16, BF16]
    (told,) = problems
    assert told.endswith("does not know: Outcome.mood\\x1b, Record.colour")
    with pytest.raises(ValueError, match="Record has unknown or missing fields: colour"):
        Record.from_json(newer | {"outcome": BF16.outcome.to_json()})


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "not the header"),
        (b"torn {", "not the header"),
        (b'{"kind": "record"}\n', "not the header"),
        (b'{"kind": "run", "store_version": 999, "run": {}}\n', "layout 999"),
        (b'{"kind": "run", "store_version": 1, "run": {"id": "x"}}\n', "missing fields"),
        (b'{"kind": "run", "store_version": 1}\n', "run"),
    ],
)
def test_an_unreadable_header_is_one_clear_line_and_others_are_still_read(
    tmp_path, header, message
):
    bad = tmp_path / "test-cpu-2-cores" / "20250101T000000Z-bad.jsonl"
    good = RunFile.create(tmp_path, run())
    bad.write_bytes(header)
    with pytest.raises(StepbenchError, match=message) as raised:
        RunFile.read(bad)
    assert "\n" not in str(raised.value)
    assert str(bad) in str(raised.value)
    files, problems = read_all(tmp_path)
    assert files == [good]
    assert problems == [str(raised.value)]


def test_a_run_that_is_not_closed_is_continued_by_its_equal(tmp_path):
    file = RunFile.create(tmp_path, run())
    file.add(BF16)
    later = run(
        "20260201T000000Z-ffffff",
        started_at="2026-02-01T00:00:00+00:00",
        machine=run().machine | {"memory_bytes": 1},  # another host of its kind
    )
    continued = open_run(tmp_path, later)
    assert (continued.path, continued.records) == (file.path, [BF16])


@pytest.mark.parametrize(
    "changes",
    [
        {"commit": "fedcba"},
        {"edited": True},
        {"software": {"torch": "2.14.0+cpu", "stepbench_digest": "0123456789abcdef"}},
        {"measure_version": 999},
        {"settings": {"rounds": 2}},
        {"machine": run().machine | {"cores": 4}},
    ],
)
def test_an_unlike_run_is_never_continued(tmp_path, changes):
    file = RunFile.create(tmp_path, run())
    other = open_run(tmp_path, run("20260201T000000Z-ffffff", **changes))
    assert other.path != file.path
    assert len(read_all(tmp_path)[0]) == 2


def test_a_closed_run_is_not_continued(tmp_path):
    file = RunFile.create(tmp_path, run())
    file.close()
    assert open_run(tmp_path, run("20260201T000000Z-ffffff")).path != file.path


def test_a_death_during_a_case_is_an_outcome_told_once(tmp_path):
    RunFile.create(tmp_path, run()).begin(case("bf16"))
    for _ in range(2):
        file = open_run(tmp_path, run())
        assert [(one.case, one.outcome) for one in file.records] == [(case("bf16"), DIED)]
        assert file.cases_begun == []
    assert len(lines_of(file)) == 3


def test_a_case_withdrawn_is_no_death(tmp_path):
    file = RunFile.create(tmp_path, run())
    file.begin(case("bf16"))
    file.withdraw(case("bf16"))
    assert open_run(tmp_path, run()).records == []


ANOTHER_PROCESS = """
import pathlib, sys
from stepbench.store import open_run
from tests.synthetic import case, run

file = open_run(pathlib.Path(sys.argv[1]), run("20260201T000000Z-ffffff"))
file.begin(case("bf16"))
print(file.path, flush=True)
sys.stdin.read()
"""


def test_a_run_that_a_living_process_measures_is_left_to_it(tmp_path, pytestconfig):
    process = subprocess.Popen(
        [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pytestconfig.rootpath,
    )
    theirs = process.stdout.readline().strip()
    ours = open_run(tmp_path, run("20260202T000000Z-aaaaaa"))
    assert str(ours.path) != theirs
    ours.close()
    process.kill()
    process.communicate()
    left = open_run(tmp_path, run("20260203T000000Z-bbbbbb"))
    assert str(left.path) == theirs
    assert [one.outcome for one in left.records] == [DIED]


def test_a_machines_folder_is_read_like_all_of_them(tmp_path):
    file = RunFile.create(tmp_path, run())
    assert [one.path for one in read_all(file.path.parent)[0]] == [file.path]


FULL_DISK = """
import pathlib, resource, sys
from stepbench.errors import StepbenchError
from stepbench.store import RunFile
from tests.synthetic import case, measurement, record, run

def limit(size_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))

def refused(act):
    try:
        act()
    except StepbenchError as error:
        return str(error)
    raise SystemExit("a full disk was not noticed")

results = pathlib.Path(sys.argv[1])
limit(10)
refused(lambda: RunFile.create(results, run()))
assert not list(results.glob("*/*")), "a run without header stayed behind"
limit(resource.RLIM_INFINITY)
file = RunFile.create(results, run())
first, second = (record(case(n), [(measurement(), measurement())]) for n in ("bf16", "ckpt2"))
file.add(first)
before = file.path.read_bytes()
for room in (0, 1, 100):
    limit(len(before) + room)
    message = refused(lambda: file.add(second))
    assert "1 records in it are safe" in message and "make room" in message, message
    assert file.path.read_bytes() == before and file.records == [first]
    refused(lambda: file.begin(second.case)) if room < 50 else None
limit(resource.RLIM_INFINITY)
file.add(second)
read, problems = RunFile.read(file.path)
assert (read.records, problems) == ([first, second], []), problems
"""


def test_a_full_disk_loses_nothing_and_the_next_append_works(tmp_path, pytestconfig):
    # RLIMIT_FSIZE makes the kernel write short and then refuse, as a full disk does.
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=pytestconfig.rootpath,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "results").write_text("a file where a folder should be")
    with pytest.raises(StepbenchError, match="cannot be written"):
        RunFile.create(tmp_path / "results", run())


def test_every_published_record_is_read():
    runs = [*Path(__file__).parents[1].glob("results/**/*.jsonl")]
    runs = [one for one in runs if one.parts[-3] not in ("aa", "models", "published")]
    assert runs
    problems = [problem for run in runs for problem in read_path(run)[1]]
    assert problems == []

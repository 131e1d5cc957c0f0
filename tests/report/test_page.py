"""The page: complete, safe whatever the records hold, and readable with no network and no torch."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from stepbench.records.outcome import Outcome
from stepbench.report import front, matrix, page
from stepbench.report.rows import tables
from stepbench.store import RunFile
from tests.synthetic import MACHINE, MIB, WORKLOAD, case, measurement, record, run, run_file

UNSUPPORTED = Outcome(kind="unsupported", reason="no tensor cores")


def measured(names, step_s, peak_mib, ranks=1):
    pair = (measurement([step_s], peak_bytes=peak_mib * MIB), measurement([0.1]))
    return record(case(names, ranks=ranks), [pair])


def small_run(header=None):
    return run_file(
        [
            measured("bf16", 0.05, 80),
            measured("ckpt2", 0.12, 60),
            measured("ckpt2+bf16", 0.06, 50),
            record(case("ckpt1+bf16"), outcome=UNSUPPORTED),
        ],
        header,
    )


class Reader(HTMLParser):
    """Tags, attributes and text of a page, as a browser would take them apart."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.scripts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_data(self, data):
        (self.scripts if self.tags and self.tags[-1] == "script" else self.words).append(data)


def test_columns_are_the_axis_with_most_techniques_and_lines_the_rest():
    grid = matrix.arrange(tables(small_run())[0])
    assert grid.axis == "checkpointing"
    assert grid.columns == ("baseline", "ckpt2", "ckpt1")
    assert grid.lines == ("baseline", "bf16")
    assert grid.cells["bf16", "ckpt2"].name == "ckpt2+bf16"
    assert grid.cells["bf16", "ckpt1"].figures is None
    assert ("baseline", "ckpt1") not in grid.cells


def test_ranks_have_a_line_of_their_own():
    file = run_file([measured("bf16", 0.05, 80), measured("bf16", 0.03, 80, ranks=2)])
    assert matrix.arrange(tables(file)[0]).lines == ("baseline", "baseline on 2 ranks")


def test_a_run_of_the_baseline_alone_has_no_matrix():
    assert matrix.arrange(tables(run_file([measured("baseline", 0.1, 100)]))[0]) is None


def test_the_front_is_what_nothing_beats_in_both():
    file = run_file(
        [
            measured("accum2", 0.09, 90),
            measured("accum4", 0.11, 90),  # slower, no smaller
            measured("ckpt1", 0.2, 40),
            measured("ckpt2", 0.15, 60),
            measured("ckpt3", 0.15, 70),  # no faster, larger
            record(case("bf16"), outcome=UNSUPPORTED),
        ]
    )
    rows = tables(file)[0].rows
    assert [row.name for row in front.best(rows)] == ["accum2", "ckpt2", "ckpt1"]


def test_every_cell_shows_its_number_or_its_outcome_and_reason():
    grid = matrix.arrange(tables(small_run())[0])
    drawn = matrix.draw(grid)
    speed, words, memory, _ = drawn.data
    assert speed.text[1] == ["<b>~2.00x</b><br>50.0 ms", "<b>~1.67x</b><br>60.0 ms", ""]
    assert memory.text[1] == ["<b>0.80x</b><br>80.0 MiB", "<b>0.50x</b><br>50.0 MiB", ""]
    assert speed.z[0][0] == memory.z[0][0] == 0.0  # the baseline is even
    assert speed.z[1][0] == 1.0  # twice as fast: full colour
    assert memory.z[1][1] == pytest.approx(1.0)
    assert words.text == ("not measured", "<b>unsupported</b><br>no tensor cores")
    assert "unsupported: no tensor cores" in speed.hovertext[1][2]


@pytest.mark.parametrize("slowest_s", [0.12, 2.0])
def test_the_front_is_drawn_with_and_without_a_very_slow_case(slowest_s):
    file = run_file([measured("bf16", 0.05, 80), measured("fp16", slowest_s, 70)])
    figure = front.draw(matrix.arrange(tables(file)[0]))
    logarithmic = figure.layout.xaxis.type == "log"
    assert logarithmic == (slowest_s > 1)
    assert list(figure.data[0].x) == pytest.approx([50.0, slowest_s * 1e3])


def test_the_page_needs_no_network(tmp_path):
    written = page.write([small_run()], tmp_path / "new" / "folder")
    text = written.read_text(encoding="utf-8")
    assert re.findall(r"https?://|//cdn|@import|url\(", text) == []
    sources = [value for name, value in Reader(text).attributes if name in ("src", "href")]
    assert sources == ["plotly.min.js"]
    assert (written.parent / "plotly.min.js").stat().st_size > 1_000_000


def test_no_markup_from_a_record_reaches_the_page(tmp_path):
    evil = "</script></title><img src=x onerror=alert(1)>\x1b"
    header = run(commit=evil[:10], machine=MACHINE | {"cpu": evil, "name": "evil"})
    pair = (measurement(disturbances=[evil], torch=evil), measurement())
    safe, unsafe = small_run(header=run(machine=MACHINE)), run_file(
        [
            record(case(evil, workload=evil), [pair]),
            record(case("ckpt2", workload=evil), outcome=Outcome(kind="failed", reason=evil)),
        ],
        header,
    )  # fmt: skip
    expected, got = (
        Reader(page.write([file], tmp_path).read_text(encoding="utf-8")) for file in (safe, unsafe)
    )
    assert "img" not in got.tags
    assert got.tags.count("script") == expected.tags.count("script")
    assert not [name for name, _ in got.attributes if name.startswith("on")]
    assert not any("<img" in script for script in got.scripts)
    # plotly decodes \u003c and then reads HTML: what it is given must be escaped once more.
    assert not any(r"\u003cimg" in script for script in got.scripts)
    assert any("onerror=alert(1)" in word for word in got.words)
    assert "\x1b" not in "".join(got.words + got.scripts)


def test_the_newest_run_is_open_and_older_ones_are_folded(tmp_path):
    old = small_run(run("a", started_at="2026-01-01T00:00:00+00:00"))
    new = small_run(run("b", started_at="2026-02-01T00:00:00+00:00"))
    elsewhere = small_run(run("c", machine=MACHINE | {"name": "other"}))
    text = page.write([old, elsewhere, new], tmp_path).read_text(encoding="utf-8")
    assert text.count("<h2>") == 2
    assert text.count("<details>") == 1
    assert text.index("2026-02-01") < text.index("<summary>") < text.index("2026-01-01")


def test_runs_stand_by_commit_where_history_is_known(tmp_path):
    late = small_run(run("a", started_at="2026-01-01T00:00:00+00:00", commit="late"))
    early = small_run(run("b", started_at="2026-02-01T00:00:00+00:00", commit="early"))
    gone = small_run(run("c", started_at="2026-03-01T00:00:00+00:00", commit="gone"))
    written = page.write([gone, early, late], tmp_path, {"early": 3, "late": 7})
    text = written.read_text(encoding="utf-8")
    assert text.index("2026-01-01") < text.index("2026-02-01") < text.index("2026-03-01")


def test_reasons_are_visible_without_a_pointer(tmp_path):
    text = page.write([small_run()], tmp_path).read_text(encoding="utf-8")
    assert "[1] no tensor cores" in "".join(Reader(text).words)


def test_a_page_without_records_says_how_to_make_some(tmp_path):
    assert "stepbench run" in page.write([], tmp_path).read_text(encoding="utf-8")


def test_a_run_in_which_nothing_was_ok_is_still_a_page(tmp_path):
    file = run_file([record(case("bf16"), outcome=UNSUPPORTED)])
    text = page.write([file], tmp_path).read_text(encoding="utf-8")
    assert WORKLOAD in text
    assert "no tensor cores" in text


WITHOUT_TORCH = """
import json, pathlib, sys
sys.modules["torch"] = None  # any import of it fails
from stepbench.report import page, tables
from stepbench.store import read_all
files, problems = read_all(pathlib.Path(sys.argv[1]))
tables.markdown(files[0])
json.dumps(tables.as_json(files[0]))
page.write(files, pathlib.Path(sys.argv[1]) / "html")
print(tables.terminal(files[0]))
"""


def test_reading_and_reporting_need_no_torch(tmp_path, pytestconfig):
    stored = RunFile.create(tmp_path, run())
    for one in small_run().records:
        stored.add(one)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)],
        cwd=pytestconfig.rootpath,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "ckpt2+bf16" in done.stdout

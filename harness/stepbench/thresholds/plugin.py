"""The pytest plug-in: a marker says where floors of techniques hold, the fixture `floor` which.

Every pytest run loads it where stepbench is installed, so it imports nothing but pytest until a
test asks for `floor`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from stepbench.thresholds.asserted import Floor
    from stepbench.thresholds.session import Floors, Judgement, Session

FLOORS: pytest.StashKey[Floors] = pytest.StashKey()
MARKER = (
    "stepbench(workload=..., machine=..., torch=..., results=...): where the floors of this test "
    "hold: a workload, a machine (cpu, cuda, a GPU's or a machine's name), versions of torch; from "
    "a folder of stored records instead of measuring now."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stepbench", "floors of training techniques")
    group.addoption(
        "--stepbench-strict",
        action="store_true",
        help="Fail a test whose floors cannot be told here, instead of skipping it.",
    )
    group.addoption(
        "--stepbench-results",
        metavar="FOLDER",
        help="Judge every floor from the records in FOLDER; measure nothing.",
    )
    parser.addini("stepbench_strict", "As --stepbench-strict.", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture(scope="session")
def _stepbench(pytestconfig: pytest.Config) -> Iterator[Session]:
    """What the floors of one run share: the measuring process and what it has measured."""
    from stepbench.thresholds.session import Session

    option = pytestconfig.getoption("--stepbench-results")
    session = Session(
        folder=pytestconfig.rootpath,
        results=str(pytestconfig.invocation_params.dir / option) if option else None,
    )
    yield session
    session.close()


@pytest.fixture
def floor(request: pytest.FixtureRequest) -> Callable[[str], Floor]:
    """`floor("bf16")`: claim how fast or small a combination is beside its baseline.

    All claims of a test are judged together when it ends, from one measurement of each
    combination. The methods of what it returns: `stepbench.thresholds.asserted.Floor`.
    """
    from stepbench.thresholds.asked import Elsewhere
    from stepbench.thresholds.floors import Unjudged

    marks = [(mark.args, mark.kwargs) for mark in request.node.iter_markers("stepbench")]
    with _mistakes_in_one_line():
        session: Session = request.getfixturevalue("_stepbench")
        try:
            floors = session.floors(marks[::-1])
        except Elsewhere as reason:
            _skip(str(reason))
        except Unjudged as reason:
            _cannot_tell(request.config, f"inconclusive: {reason}")
    request.node.stash[FLOORS] = floors
    return floors.floor


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Judge what the test has claimed, as part of its call: a floor that fails is a failed test."""
    if FLOORS not in item.stash:
        return (yield)
    with _mistakes_in_one_line():
        result = yield
        judgement = item.stash[FLOORS].judge()
    _tell(item, judgement)
    return result


@contextmanager
def _mistakes_in_one_line() -> Iterator[None]:
    """Fail with the line that a StepbenchError is, and none of the frames that it came through."""
    from stepbench.errors import StepbenchError

    try:
        yield
    except StepbenchError as mistake:
        _fail(f"stepbench: {mistake}")


def _tell(item: pytest.Item, judgement: Judgement) -> None:
    match judgement.kind:
        case "fails":
            _fail(judgement.text)
        case "inconclusive":
            _cannot_tell(item.config, judgement.headline, judgement.text)
        case "unsupported":
            _skip(judgement.headline)
        case "holds":
            item.add_report_section("call", "stepbench", judgement.text)  # shown by -rP


def _cannot_tell(config: pytest.Config, headline: str, text: str | None = None) -> NoReturn:
    if config.getoption("--stepbench-strict") or config.getini("stepbench_strict"):
        _fail(text or headline)
    _skip(headline)


def _fail(text: str) -> NoReturn:
    """Fail with that text alone: no frames, nor what was being handled."""
    raise pytest.fail.Exception(text, pytrace=False) from None


def _skip(reason: str) -> NoReturn:
    skipped = pytest.skip.Exception(reason)
    skipped._use_item_location = True  # told at the test's place, not at this line
    raise skipped from None

"""How many pairs a live claim is given, by a measurer that answers at once."""

import pytest

from stepbench.records.case import Case
from stepbench.thresholds.asserted import Floor
from stepbench.thresholds.floors import judge
from stepbench.thresholds.live import Live
from tests.synthetic import MACHINE, case, measurement, record

CASE = case("bf16")
OOM = {"kind": "oom", "reason": "2 GiB", "phase": "forward"}


class Answers:
    """Pairs with these speeds in turn, disturbed or not; `ends` is an outcome instead of pairs."""

    def __init__(self, *speeds, disturbances=(), ends=None):
        self.speeds, self.disturbances, self.ends = speeds, list(disturbances), ends
        self.asked = []

    def ask(self, handler, *arguments):
        match handler:
            case "machine":
                return MACHINE
            case "record":
                known = record(Case.from_json(arguments[0]), [(measurement(), measurement())])
                return known.to_json()
            case "pairs":
                _, first, many = arguments
                self.asked.append((first, many))
                pairs = [
                    {
                        "speed": self.speeds[index % len(self.speeds)],
                        "disturbances": self.disturbances,
                    }
                    for index in range(first, first + many)
                ]
                return {"pairs": [] if self.ends else pairs, "outcome": self.ends}


def judged(answers, **bounds):
    (claim,) = Floor("bf16").speed(**bounds).claims
    return judge(claim, CASE, Live(answers))


@pytest.mark.parametrize(
    ("answers", "kind", "asked"),
    [
        (Answers(2.0), "holds", [(0, 6)]),
        (Answers(1.0), "fails", [(0, 6)]),
        (Answers(1.4, 1.6), "inconclusive", [(0, 6), (6, 6), (12, 8)]),
        (Answers(2.0, disturbances=["somebody"]), "inconclusive", [(0, 6), (6, 3)]),
        (Answers(2.0, ends=OOM), "fails", [(0, 6)]),
    ],
)
def test_stages(answers, kind, asked):
    assert judged(answers, at_least=1.5).kind == kind
    assert answers.asked == asked


def test_what_is_measured_is_kept_for_the_next_claim():
    answers = Answers(2.0)
    live = Live(answers)
    for claim in Floor("bf16").speed(at_least=1.5).speed(at_most=3).memory(at_most=1).claims:
        assert judge(claim, CASE, live).kind == "holds"
    assert answers.asked == [(0, 6)]

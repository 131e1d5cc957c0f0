"""What is told of the pairs, by a clock of the test's own."""

from stepbench.gate.pace import Pace
from tests.synthetic import case


def told(cases, new_pairs, seconds, pairs):
    """The lines of `cases` cases whose pairs take `seconds` each."""
    now, lines = [0.0], []
    pace = Pace(lines.append, cases, new_pairs, clock=lambda: now[0])
    for number in range(cases):
        pace.turn_to(case(f"accum{number + 2}"))
        for done, wanted in pairs:
            pace.begins(done, wanted)
            now[0] += seconds
    return [line.removeprefix("gpt-1m@batch=8 ") for line in lines]


def test_each_slow_pair_is_told_with_what_is_left_of_the_stage():
    lines = told(2, 3, 60.0, [(6, 9), (7, 9), (8, 9)])
    assert lines == [
        "accum2: pair 7 of 9",
        "accum2: pair 8 of 9, about 5 min left of this stage",
        "accum2: pair 9 of 9, about 4 min left of this stage",
        "accum3: pair 7 of 9, about 3 min left of this stage",
        "accum3: pair 8 of 9, about 2 min left of this stage",
        "accum3: pair 9 of 9, about 60 s left of this stage",
    ]


def test_quick_pairs_are_told_every_few_seconds_and_extra_ones_counted():
    lines = told(1, 8, 4.0, [(index, 6) for index in range(8)])
    assert lines == [
        "accum2: pair 1 of 6",
        "accum2: pair 4 of 6, about 12 s left of this stage",
        "accum2: pair 7 of 7, about 4 s left of this stage",
    ]

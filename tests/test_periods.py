"""What is slow every so often, by hand."""

import pytest

from stepbench.stats.periods import period, slow_steps


@pytest.mark.parametrize(
    ("slow", "last", "told"),
    [
        ({4, 14}, 19, 10),
        ({4}, 19, None),  # it was seen once
        (set(range(4, 40, 3)), 39, 3),
        ({4, 14, 15}, 19, 10),  # one by chance
        ({5, 6, 7, 35, 36, 37}, 60, 30),  # a burst of three
        ({5, 6, 7}, 30, None),
        ({3, 13}, 30, None),  # 23 was not slow
        (set(), 19, None),
    ],
)
def test_a_period_is_what_most_slow_steps_agree_on(slow, last, told):
    assert period(slow, 0, last) == told


def test_a_step_is_slow_over_a_fifth_more_than_the_median_of_its_process():
    at_9 = {number: 1.21 if number == 9 else 1.0 for number in range(5, 15)}
    below = {number: 1.19 if number == 9 else 1.0 for number in range(5, 15)}
    slower = {number: 10 * seconds for number, seconds in at_9.items()}
    assert slow_steps([at_9, slower]) == {9}
    assert slow_steps([at_9, below]) == slow_steps([at_9]) == frozenset()
    assert slow_steps([at_9, at_9, below, below, below]) == frozenset()  # 2 of 5

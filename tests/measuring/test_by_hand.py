"""What `make overhead` calls right, by figures made by hand."""

import pytest

from benchmarks.by_hand import right
from harness.stats import Estimate

EQUAL = Estimate(median=1.0, low=0.995, high=1.005, rounds=60)
SLOWER = Estimate(median=1.01, low=1.005, high=1.015, rounds=60)


@pytest.mark.parametrize(
    ("ratio", "costs", "device", "told"),
    [
        (EQUAL, [0.1, 0.4], "cpu", True),
        (EQUAL, [0.1, 0.6], "cpu", False),
        (EQUAL, [3.0, 9.0], "cuda", True),  # context, libraries and a larger model
        (SLOWER, [0.1, 0.4], "cpu", False),
        (SLOWER, [0.1, 0.4], "cuda", False),
    ],
)
def test_a_process_cost_is_limited_on_a_cpu_and_a_step_s_everywhere(ratio, costs, device, told):
    assert right(ratio, costs, device) is told

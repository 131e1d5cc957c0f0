"""Every pair with a technique that runs a process a rank, on two of them."""

from stepbench.measuring.preload import preload
from stepbench.measuring.process import in_children
from tests.training.test_pairs import on_a_rank, right


def test_on_two_ranks(tmp_path):
    preload(["peft"])
    file = str(tmp_path / "meeting")
    for ended in in_children([(on_a_rank, rank, file) for rank in range(2)], deadline_s=300):
        assert ended.death is None, ended.traceback
        right(ended.answer)

"""Operators of threads that run beside each other are all counted."""

import threading
import time
from collections import Counter

import torch

from stepbench.measuring.probes.counters import _Operators

THREADS, OPERATORS = 4, 50


class Slow(Counter):
    """Lets other threads run between reading a count and writing it."""

    def __getitem__(self, name):
        count = super().__getitem__(name)
        time.sleep(1e-4)
        return count


def test_no_operator_of_a_replica_is_lost():
    operators = _Operators()
    operators.names = Slow()
    left = torch.ones(2, 2)

    def run():
        with operators:
            for _ in range(OPERATORS):
                torch.mm(left, left)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert dict(operators.names) == {"aten.mm": THREADS * OPERATORS}
    assert operators.flops == THREADS * OPERATORS * 2 * 2**3

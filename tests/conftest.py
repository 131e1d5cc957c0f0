"""What holds for the whole suite."""

import signal

import torch

from stepbench.measuring.lock import hold_gpus

# A suite that a shell started in the background ignores Ctrl-C, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A fork of a process that has computed on several threads hangs where it computes on several, too.
torch.set_num_threads(1)


def pytest_configure(config):
    """Hold all GPUs for the suite: its processes beside each other may then share them."""
    if not hasattr(config, "workerinput"):  # the one that starts xdist's others
        hold_gpus(2**10)

"""What a loop holds, and on which device: read between backward and update of a real step."""

from dataclasses import replace

import torch

from stepbench.measuring.probes.elements import elements
from stepbench.measuring.probes.memory import categories
from stepbench.training.build import build
from stepbench.training.data import Batches
from stepbench.training.step import train_step
from stepbench.training.techniques import parse
from tests.training.small import CPU, tiny


def test_what_lies_on_the_host_is_no_part_of_the_device():
    """A CPU's loop, said to compute on a GPU: what sharding leaves in host memory."""
    loop, site = build(tiny(), parse("baseline"), CPU)
    batches = Batches(tiny(), site.plan)
    train_step(loop, next(batches), site)  # its state is made
    held = {}

    def update():
        held["here"] = categories(loop, CPU)
        held["offloaded"] = categories(loop, torch.device("cuda", 0))
        loop.update()

    train_step(replace(loop, update=update), next(batches), site)
    assert all(held["here"].values())
    assert not any(held["offloaded"].values())
    here, offloaded = elements(loop, CPU), elements(loop, torch.device("cuda", 0))
    assert (here["host_state_elements"], here["state_elements"]) == (
        0,
        {"float32": 2 * here["elements"]},
    )
    assert offloaded["host_state_elements"] == 2 * here["elements"]

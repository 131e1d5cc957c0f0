"""What runs in a fresh process of interleaved pairs: built and warmed up, it times on command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from multiprocessing import connection
from typing import Any

import torch

from stepbench.measuring.probes.resident import keep_freed_memory
from stepbench.measuring.settings import Settings
from stepbench.measuring.subject import Subject, with_subject
from stepbench.records.machine import device_type
from stepbench.records.pair import Block


def time_blocks(
    channel: int, case_json: dict[str, Any], settings: Settings, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Build, run the first steps as every process does, then time each block asked for.

    A message is a number of steps, and its answer the block of them. Ends when the parent hangs up,
    with `{}`, or with an `outcome`.
    """

    def work(subject: Subject) -> dict[str, Any]:
        with connection.Connection(channel) as parent:
            subject.prepare()
            while True:
                try:
                    steps = json.loads(parent.recv_bytes())
                except EOFError:
                    return {}
                window = subject.block(steps)
                # A device's events hold no delay of the host's; other threads have their own.
                alone = subject.device.type == "cpu" and torch.get_num_threads() == 1
                delay_s = window.delay_s if alone else ()
                block = Block(step_s=window.step_s, cpu_s=window.cpu_s, delay_s=delay_s)
                parent.send_bytes(json.dumps(block.to_json()).encode())

    keep_freed_memory()
    return with_subject(Subject, case_json, device_type(machine), work, settings)

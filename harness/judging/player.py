"""What runs in a fresh process of a ping-pong pair: built and warmed up, it times on command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from multiprocessing import connection
from typing import Any

from harness.machine import device_type
from harness.measuring.settings import Settings
from harness.measuring.worker import Subject, with_subject


def play(
    channel: int, case_json: dict[str, Any], settings: Settings, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Build, warm up, tell a warm step's seconds, then time each block asked for.

    A message is a number of steps, and its answer `{"step_s": […], "cpu_s": […]}` after one more
    step that is dropped. Ends when the parent hangs up, with `{}`, or with an `outcome`.
    """

    def work(subject: Subject) -> dict[str, Any]:
        with connection.Connection(channel) as parent:
            _tell(parent, {"warm_step_s": subject.prepare()})
            while True:
                try:
                    steps = json.loads(parent.recv_bytes())
                except EOFError:
                    return {}
                window = subject.block(steps)
                _tell(parent, {"step_s": window.step_s, "cpu_s": window.cpu_s})

    return with_subject(case_json, device_type(machine), work, settings)


def _tell(parent: connection.Connection, what: Mapping[str, Any]) -> None:
    parent.send_bytes(json.dumps(what).encode())

"""What `asv.conf.json` loads: the environment, the dashboard's page, this machine's entry."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asv import util
from asv.benchmarks import Benchmarks
from asv.commands import find, run
from asv.graph import Graph
from asv.machine import Machine

from stepbench.history import checkout, configuration, publish
from stepbench.history.configuration import told_by_asv

__all__ = ["checkout", "publish", "setup"]

GIB = 2**30
NAME = "stepbench.history.plugin"


class MachineName:
    """This machine's name, looked up when ASV first asks: `asv show` need not wait for a driver."""

    def __init__(self) -> None:
        self._name: str | None = None

    def __get__(self, instance: object, owner: type) -> str:
        if self._name is None:
            self._name = register_machine()
        return self._name


def setup() -> None:
    """Called by ASV each time that a configuration names the plug-in.

    Raises:
        UserError: it was loaded by another name, or is a copy beside the configuration.
    """
    _require_one_copy()
    if isinstance(vars(Machine).get("hardcoded_machine_name"), MachineName):
        return
    Machine.hardcoded_machine_name = MachineName()
    Benchmarks.discover = classmethod(_sparing(Benchmarks.discover.__func__))
    Graph.detect_steps = publish.exact(Graph.detect_steps)
    for command in (find, run):
        command.run_benchmarks = checkout.recorded(command.run_benchmarks)


def _require_one_copy() -> None:
    """UserError unless this is the package that ASV's children import, by its own name.

    ASV imports only plug-ins whose name starts with a dot, and meanwhile puts the configuration's
    folder first on the path. A package `stepbench` there would be this plug-in, and the installed
    one would be what benchmarks import.
    """
    if __name__ != NAME:
        raise util.UserError(f'asv.conf.json: the plug-in is called ".{NAME}", not ".{__name__}"')
    if (root := Path(__file__).resolve().parents[2]) == Path.cwd():
        raise util.UserError(
            f"{root / 'stepbench'} hides the installed Stepbench; rename that folder"
        )


def register_machine() -> str:
    """Save this machine's entry in ASV's machine file, so that it asks nothing; return its name.

    No host name and no kernel: ASV makes an axis of every key. Only what measures asks for the
    name, so from here on ASV's process holds the GPU that its children measure on.
    """
    from stepbench.measuring.sweep import claimed_machine  # torch: not for `asv show`

    with told_by_asv():
        machine = claimed_machine()
    entry = {
        "machine": machine["name"],
        "os": platform.system(),
        "arch": machine["architecture"],
        "cpu": machine["cpu"],
        "num_cpu": str(machine["cores"]),
        "ram": f"{machine['memory_bytes'] / GIB:.0f} GiB",
        "gpu": ", ".join(gpu["name"] for gpu in machine["gpus"]) or "none",
    }
    with told_by_asv():
        configuration.save_machine(machine["name"], entry)
    return str(machine["name"])


def _sparing(discover: Callable[..., Any]) -> Callable[..., Any]:
    """`Benchmarks.discover` without the `on_request` files of asv.conf.json that no -b names.

    ASV itself would run them for every pattern that happens to match, such as `-b step_s`.
    """

    def discover_some(cls: type, conf: Any, *args: Any, regex: Any = None, **kwargs: Any) -> Any:
        with told_by_asv():
            configuration.require(conf)
        patterns = [regex] if isinstance(regex, str) else list(regex or [""])
        names = getattr(conf, "on_request", [])
        left_out = [name for name in names if not any(name in one for one in patterns)]
        if left_out:
            others = rf"^(?!({'|'.join(left_out)})\.).*"
            patterns = [f"{others}({pattern})" for pattern in patterns]
        return discover(cls, conf, *args, regex=patterns, **kwargs)

    return discover_some

"""The command `stepbench` in a fork of this process, which has imported torch already."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from stepbench.cli import main as cli
from stepbench.measuring.process import in_child

DEADLINE_S = 600.0


def stepbench(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """What the command printed, run in the folder `cwd`; it has to end with `code`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        ended = in_child(_main, arguments, cwd, out.fileno(), err.fileno(), deadline_s=DEADLINE_S)
        out.seek(0)
        err.seek(0)
        said, told = out.read(), err.read()
    assert ended.death is None, (ended.death, ended.traceback)
    assert ended.answer == code, told
    return subprocess.CompletedProcess(arguments, code, said, told)


def _main(arguments: tuple[str, ...], cwd: Path, out: int, err: int) -> int:
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["stepbench", *arguments]
    with os.fdopen(os.dup(out), "w") as sys.stdout, os.fdopen(os.dup(err), "w") as sys.stderr:
        os.dup2(out, 1)
        os.dup2(err, 2)
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
    raise AssertionError("the command came back")

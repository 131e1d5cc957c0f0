"""The process that measures for floors: how it ends, and that nothing outlives it."""

import json
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from stepbench.errors import StepbenchError
from stepbench.thresholds.measurer import Measurer
from tests.synthetic import case

# It imports torch first, here from a cold disk and on a busy machine at worst.
PATIENCE_S = 60.0


def test_its_death_is_told_in_one_line():
    with closing(Measurer(Path.cwd())) as measurer:
        measurer.process.kill()
        with pytest.raises(StepbenchError, match=r"^the measuring process died$"):
            measurer.ask("machine")


def test_closing_it_ends_what_it_measures():
    with closing(Measurer(Path.cwd())) as measurer:
        with pytest.raises(StepbenchError, match="measuring failed: KeyError: 'no such handler'"):
            measurer.ask("no such handler")
        process = psutil.Process(measurer.process.pid)
        request = ["record", case("accum2", workload="gpt-10m").to_json()]  # takes some seconds
        measurer.control.send_bytes(json.dumps(request).encode())
        began = time.monotonic()
        while not (workers := process.children(recursive=True)):
            assert time.monotonic() - began < PATIENCE_S
            time.sleep(0.05)
    assert not process.is_running()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert not alive

"""Stands for `stepbench/measuring/sweep.py` in a toy project: it invents the measurements.

Edit what is measured in `stepbench/training/subject.py`. Each measurement leaves a line in the
file that STEPBENCH_TOY_LOG names.
"""

import os
import random
import time
from dataclasses import replace
from pathlib import Path

from stepbench.measuring import synthetic
from stepbench.records.outcome import Outcome
from stepbench.store import new_run_id, open_run
from stepbench.training import subject


def claimed_machine(gpus=None):
    return synthetic.MACHINE


def open_sweep(results, settings, *, project, commit=None):
    settings = {"rounds": settings.rounds}
    return open_run(results, synthetic.run(new_run_id(), commit=commit, settings=settings))


def close_sweep(file):
    file.close()


def measure_once(file, case):
    if known := file.find(case):
        return known
    file.begin(case)
    try:
        record = _measure(file.run.settings["rounds"], case)
    except BaseException:
        file.withdraw(case)
        raise
    file.add(record)
    return record


def _measure(rounds, case):
    with Path(os.environ["STEPBENCH_TOY_LOG"]).open("a") as log:
        log.write(f"{file_hash()} {case.combination} {rounds}\n")
    time.sleep(float(os.environ.get("STEPBENCH_TOY_WAIT_S", "0")))
    name = str(case.combination)
    if name in subject.OUTCOMES:
        return synthetic.record(case, outcome=Outcome(**subject.OUTCOMES[name]))
    pairs = [(_process(name), _process("baseline")) for _ in range(rounds)]
    return synthetic.record(case, pairs)


def _process(name):
    step_s = subject.STEP_S.get(name, 0.020) * random.uniform(0.99, 1.01)
    one = synthetic.measurement([step_s] * 5, peak_bytes=subject.PEAK_BYTES)
    return replace(one, counters=replace(one.counters, operators={"aten.mm": subject.OPERATORS}))


def file_hash():
    """Of the commit, and the folder that this code came from."""
    return f"{os.environ['STEPBENCH_COMMIT'][:8]} {Path(subject.__file__).parents[3]}"

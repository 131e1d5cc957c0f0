"""A case under torchrun, as a user starts it: two agents on loopback, and what goes wrong."""

import os
import socket
import subprocess
import sys

from stepbench.store import RunFile

NODE = """
torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint localhost:{port}
-m stepbench run ddp -w gpt-tiny -r 2 --results {results}
"""


BROKEN = """
import torch.distributed as dist
from dataclasses import replace
from stepbench.training.workloads import load

def loss(output, targets):
    if dist.is_initialized() and dist.get_rank() == 1:
        raise ValueError("on purpose")
    return load("gpt-tiny").loss(output, targets)

one = replace(load("gpt-tiny"), loss=loss)
"""


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def two_agents(results, *more, **environ):
    """Two of torchrun's agents with a process each, as on two hosts."""
    command = [*NODE.format(port=free_port(), results=results).split(), *more]
    return [
        subprocess.Popen(
            [os.path.join(os.path.dirname(sys.executable), command[0]), *command[1:]],
            env=os.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]


def test_a_rank_of_torchruns_that_raises(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    nodes = two_agents(tmp_path / "results", "-w", "broken:one", PYTHONPATH=str(tmp_path))
    told = "".join(node.communicate(timeout=300)[0] for node in nodes)
    assert "ddp on 2 ranks: failed in forward: rank 1: ValueError: on purpose (broken.py:" in told


def test_another_number_of_ranks_than_torchrun_started(tmp_path):
    nodes = two_agents(tmp_path / "results", "--ranks", "4")
    told = "".join(node.communicate(timeout=300)[0] for node in nodes)
    assert "stepbench: --ranks 4: torchrun started 2 processes; leave the number out" in told
    assert not (tmp_path / "results").exists()


def test_torchrun_spans_two_agents(tmp_path):
    nodes = two_agents(tmp_path / "results")
    told = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert "ddp on 2 ranks: ok, speed-up" in "".join(told)
    [path] = (tmp_path / "results").glob("*/*.jsonl")
    file, problems = RunFile.read(path)
    assert problems == []
    assert [len(record.rounds) for record in file.records] != []
    assert all(2 <= len(record.rounds) <= 4 for record in file.records)
    assert {len(one.case.ranks) for one in file.records[1].rounds} == {2}
    assert file.closed


def test_a_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        program = [os.path.join(os.path.dirname(sys.executable), "torchrun")]
        options = [
            "--nproc-per-node",
            "2",
            "--master-addr",
            "localhost",
            "--master-port",
            str(port),
        ]
        command = [
            "-m",
            "stepbench",
            "run",
            "ddp",
            "-w",
            "gpt-tiny",
            "--results",
            str(tmp_path),
        ]
        done = subprocess.run(
            [*program, *options, *command], capture_output=True, text=True, timeout=300, check=False
        )
    assert done.returncode != 0
    assert f"port: {port}" in done.stderr
    assert "EADDRINUSE" in done.stderr
    assert not list(tmp_path.glob("*/*.jsonl"))

"""Servers answer one request after the other, tell their death, and leave nothing behind."""

import os
import signal
import time
from contextlib import closing

import psutil
import pytest

from stepbench.server import Server, ServerDied, forked, last_line, serve

PATIENCE_S = 60.0


def answers(control, request):
    match request:
        case "hang":
            time.sleep(PATIENCE_S * 10)
        case "fail":
            os.write(2, b"its last words\n")
            os._exit(3)
    return [request, os.getpid()]


def main(descriptor, parent):
    serve(answers, descriptor, parent, hello="hello")


def started():
    return closing(Server(forked(main)))


def gone(pid):
    until = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_requests_are_answered_in_order_by_one_process():
    with started() as server:
        assert server.receive(PATIENCE_S) == "hello"
        for request in ("one", "two"):
            server.send(request)
            assert server.receive(PATIENCE_S) == [request, server.process.pid]
    assert gone(server.process.pid)


def test_an_answer_that_does_not_come_is_not_a_death():
    with started() as server:
        server.receive(PATIENCE_S)
        server.send("hang")
        with pytest.raises(TimeoutError):
            server.receive(0.05)


def test_its_death_is_told_with_its_last_line():
    with started() as server:
        server.receive(PATIENCE_S)
        server.send("fail")
        with pytest.raises(ServerDied, match=r"^: its last words$"):
            server.receive(PATIENCE_S)
        server.send("to nobody")
        with pytest.raises(ServerDied):
            server.receive(PATIENCE_S)


def test_it_dies_with_the_process_that_started_it():
    ours, theirs = os.pipe()
    parent = os.fork()
    if not parent:
        server = Server(forked(main))
        server.receive(PATIENCE_S)
        os.write(theirs, str(server.process.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    assert gone(int(os.read(ours, 100)))


def test_the_last_line_is_cut_and_may_be_none():
    assert last_line("") == ""
    assert last_line("first\n" + "x" * 300) == "x" * 200

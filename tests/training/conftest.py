"""Tests in this folder run operators, which a process that forks workers must never do.

So each of them runs in a child of its own, as a case does.
"""

import traceback

import pytest
import torch

from stepbench.measuring.process import in_child

DEADLINE_S = 120


def _call(item: pytest.Function) -> str | None:
    torch.set_num_threads(1)
    names = item._fixtureinfo.argnames
    try:
        item.obj(**{name: item.funcargs[name] for name in names})
    except BaseException:
        return traceback.format_exc()
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    ended = in_child(_call, pyfuncitem, deadline_s=DEADLINE_S)
    if ended.death or ended.answer:
        pytest.fail(ended.death or ended.answer, pytrace=False)
    return True

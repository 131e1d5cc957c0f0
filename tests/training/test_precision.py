"""Whether float32 products may run in TF32: torch's older switches and its newer ones."""

import pytest
import torch
from torch import nn
from torch.backends import cudnn

from stepbench.training.techniques import find, parse, plan_of
from stepbench.training.types import Site
from tests.training.small import CPU, tiny


def set_by(name):
    site = Site(workload=tiny(), plan=plan_of(parse(name)), device=CPU)
    find(name)[1].model(nn.Identity(), site)


@pytest.mark.parametrize("earlier", [None, "tf32", "fp32"])
@pytest.mark.parametrize(("name", "tf32"), [("fp32", False), ("bf16", False), ("tf32", True)])
def test_older_switches_agree_with_newer_ones(name, tf32, earlier):
    if earlier:
        set_by(earlier)
    set_by(name)
    matmul = torch.backends.cuda.matmul
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (tf32, tf32)
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    newer = {one.fp32_precision for one in (cudnn.conv, cudnn.rnn, matmul)}
    assert newer == {"tf32" if tf32 else "ieee"}


def test_a_workload_may_enter_cudnns_flags():
    set_by("fp32")
    with cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        assert not cudnn.allow_tf32
    assert not cudnn.allow_tf32


def test_what_somebody_else_has_set_for_all_is_not_inherited():
    cudnn.fp32_precision = torch.backends.fp32_precision = "tf32"
    set_by("fp32")
    assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "ieee")

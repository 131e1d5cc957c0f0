"""torch's DataParallel as a measured step needs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


class DataParallel(nn.DataParallel[Any]):
    """torch's DataParallel, whose threads see what the thread that started them does.

    By itself a replica's thread computes in float16 whatever autocast's type is, and nothing that
    watches operators sees it.
    """

    autocast: torch.dtype | None = None

    def parallel_apply(self, replicas: Any, inputs: Any, kwargs: Any) -> list[Any]:
        modes = _get_current_dispatch_mode_stack()

        def within(replica: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any, **named: Any) -> Any:
                with ExitStack() as stack:
                    for mode in modes:
                        stack.enter_context(mode)
                    stack.enter_context(
                        torch.autocast("cuda", self.autocast, enabled=self.autocast is not None)
                    )
                    return replica(*arguments, **named)

            return run

        return super().parallel_apply([within(one) for one in replicas], inputs, kwargs)

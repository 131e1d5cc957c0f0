"""The subject: what is trained, by which techniques, in which step."""

from stepbench.training.types import Workload

__all__ = ["Workload"]

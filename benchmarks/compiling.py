"""What does compiling buy a step, and how long does it take?"""

from stepbench.history import suite


class Compiling(suite.CompileCases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["compile"]
    params = [["compile", "compile-overhead", "compile-max"]]


class CompilingComposed(suite.CompileCases):
    """With what else it is used."""

    workload = Compiling.workload
    param_names = ["recipe"]
    params = [["bf16+compile", "bf16+compile+ckpt1"]]

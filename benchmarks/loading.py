"""Do worker processes feed the step, and what do they cost where it waits for nothing?"""

from stepbench.history import suite

WORKERS = ["workers0", "workers1", "workers2", "workers4", "workers8", "workers16"]


class LoaderBound(suite.Cases):
    """Every sample decodes a photograph: a small CNN waits for its data."""

    workload = {"cpu": "cnn-small", "cuda": "cnn-20m"}
    param_names = ["workers"]
    params = [WORKERS]


class ComputeBound(suite.Cases):
    """Bytes are at hand: a transformer waits for nothing."""

    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["workers"]
    params = [WORKERS]


class Options(suite.Cases):
    """What the loader can be told beside the number of workers."""

    workload = LoaderBound.workload
    param_names = ["workers", "option"]
    params = [["workers2"], ["pinned", "prefetch1", "prefetch4", "prefetch8", "persistent"]]

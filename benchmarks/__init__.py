"""What `asv run` measures: one short file a question; the classes hold only parameters.

They are today's, whichever commit is measured. Import the module `suite`, never `Cases` itself:
ASV would take the imported class for a benchmark of the importing file.
"""

from asv_runner.benchmarks import benchmark_types

from stepbench.history import suite

benchmark_types.append(suite.Measured)

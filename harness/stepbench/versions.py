"""The versions of what is measured and of what is written; this module keeps its place.

Commits are compared by reading it from their source, without running them.
"""

# Raise it whenever a change makes the same case give another number.
MEASURE_VERSION = 4

# The layout of a run's file. Raise it when a reader of the old layout would misread the new one.
RECORD_VERSION = 1

"""Speed-up and memory thresholds in a test suite: the pytest plug-in and what measures for it."""

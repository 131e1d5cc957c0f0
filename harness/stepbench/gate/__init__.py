"""Is this commit slower or larger than that one? Counters first, then time in pairs."""

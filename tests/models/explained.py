"""Plain loops that show why an outcome is `invalid`: the technique gives another loss there."""

EXPLAINED = {}

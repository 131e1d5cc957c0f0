"""The suite checked by itself: whether what it relies on works on this machine."""

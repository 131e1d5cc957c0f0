"""What can be observed of a step, each probe in steps of its own."""

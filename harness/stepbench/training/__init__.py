"""The subject: what is trained, by which techniques, in which step."""

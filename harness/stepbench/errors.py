"""What a person can mend, told in one line."""

from __future__ import annotations


def plain(text: str) -> str:
    """One line without control characters: those are spelled out (`\\x1b`), never sent."""
    line = " ".join(text.split())
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in line
    )


class StepbenchError(Exception):
    """A mistake that a person can mend, told in one line; the command ends with exit code 2.

    What a person typed is part of it: control characters are spelled out.
    """

    def __str__(self) -> str:
        return plain(super().__str__())

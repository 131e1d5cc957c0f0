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

    Attributes:
        argument: name and value of the argument that is at fault, `threads 64`, where one is. It
            stands first in the line, and the command makes its option of it: `--threads 64: …`.
    """

    def __init__(self, message: str = "", *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument

    def __str__(self) -> str:
        text = super().__str__()
        return plain(f"{self.argument}: {text}" if self.argument else text)

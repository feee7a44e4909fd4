"""Makes text from strangers safe for our log, tables and terminals."""

import os


def printable(text: str) -> str:
    """Return `text` as one line that any terminal can show and any encoder can encode."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text.replace("\n", " ")
    )


def shorten(value: bytes | str, limit: int = 80) -> str:
    """Return what a peer sent as messages quote it: at most `limit` characters of its repr."""
    text = repr(os.fsdecode(value[: limit + 1]))
    return text if len(value) <= limit else f"{text[:limit]}...'"

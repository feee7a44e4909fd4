"""What strangers have written, as our log, tables and terminals show it."""

import os


def printable(text: str) -> str:
    """`text` on one line that any terminal shows and any encoder takes."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text.replace("\n", " ")
    )


def shorten(value: bytes | str, limit: int = 80) -> str:
    """A peer's bytes as a message shows them."""
    text = repr(os.fsdecode(value[: limit + 1]))
    return text if len(value) <= limit else f"{text[:limit]}...'"

"""Reading files that decide what the daemon does, if nobody else can have written them."""

import os
import stat


def read(path: str) -> bytes:
    """The content of `path`, symlinks followed.

    Raises OSError, or ValueError where the file is not a file, not root's or one's own, or
    writable by everyone.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        if status.st_uid not in (0, os.geteuid()):
            raise ValueError(
                f"belongs to user {status.st_uid}, who could make the daemon do anything;"
                f" it must be root's or your own (user {os.geteuid()})"
            )
        if status.st_mode & stat.S_IWOTH:
            raise ValueError("may be written by everyone; chmod o-w it")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    # As opening a FIFO does, until somebody writes.
    return os.open(path, flags | os.O_NONBLOCK)

"""An upload as the message of its task describes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self


class Announced(NamedTuple):
    """What the message of a task says of its upload.

    `path` is where the file was when its task was sent. `original` is the path that it was uploaded
    as. Both are text that Python's own functions take; `path_bytes` and `original_bytes` are the
    names on disk.
    `user`, `client` and `protocol` are those of the FTP session, as far as they are known.
    `source` says which source noticed the file.
    `size` and `inode` are the file's when its task was sent; None if the message lacks them.
    """

    id: str
    path: str
    original: str
    user: str = ""
    client: str = ""
    protocol: str = ""
    source: str = ""
    size: int | None = None
    inode: int | None = None

    @classmethod
    def of(
        cls,
        task_id: str | None,
        header: Mapping[str, Any] | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Self:
        """Return a message's upload. Raises ValueError if header and arguments have no path."""
        header = header or {}
        # A task that another program sends, as by `task.delay(path)`, has no header.
        path = header.get("path") or next(iter(args), None) or kwargs.get("path")
        if not isinstance(path, str):
            raise ValueError("no path: no header `watchman`, and none as first argument or `path`")
        return cls(
            id=header.get("id") or task_id or "",
            path=_local(path),
            original=_local(header.get("original") or path),
            user=header.get("user", ""),
            client=header.get("client", ""),
            protocol=header.get("protocol", ""),
            source=header.get("source", ""),
            size=header.get("size"),
            inode=header.get("inode"),
        )

    @property
    def path_bytes(self) -> bytes:
        return os.fsencode(self.path)

    @property
    def original_bytes(self) -> bytes:
        return os.fsencode(self.original)


def _local(path: str) -> str:
    # A message has names as UTF-8 with surrogate escapes. This process may have another locale.
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))

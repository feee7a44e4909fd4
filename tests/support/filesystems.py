"""Filesystems that a test may mount, fill up and turn read-only; and system calls that fail."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.servers.daemon import Daemon
from tests.support.crashes import attach, see_end, threads_of
from tests.support.needs import need


class Disk:
    """A small tmpfs of its own on `path`, below which `name` may be a file that fills it."""

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        self._ballast = path / "ballast"
        path.mkdir(exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True
        )

    def fill(self, *, but: int = 0) -> None:
        """Leave no room, `but` so many bytes."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
            file.truncate(file.tell() - but)

    def free(self) -> None:
        self._ballast.unlink()

    def remount(self, how: str) -> None:
        """Turn it `ro` or `rw`; for `ro` nothing may be open for writing."""
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@contextmanager
def mounted(path: Path, size: str = "1m") -> Iterator[Disk]:
    """Mount one for as long as the context lasts."""
    disk = Disk(path, size)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def failing(daemon: Daemon, *inject: str, paths: Sequence[Path] = ()) -> Iterator[None]:
    """Have system calls of a running daemon fail, as in `fdatasync:error=EIO`.

    With `paths` only those on these files, and on what is opened as these.
    """
    need("strace")
    only = [word for path in paths for word in ("-P", str(path))]
    options = [word for one in inject for word in ("-e", f"inject={one}")]
    tracer = attach(daemon, threads_of(daemon), "-f", "-qq", *only, *options)
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        see_end(tracer)
    # What is delayed may never come to its end, where that is written.
    log = (daemon.directory / "strace.log").read_text(errors="replace")
    assert "(INJECTED)" in log or any("delay" in one for one in inject)


def unprivileged(*directories: Path) -> list[str]:
    """Give directories to nobody, and return what runs a command as such."""
    for directory in directories:
        for above in reversed(directory.parents[:-1]):
            above.chmod(above.stat().st_mode | 0o711)
        os.chown(directory, 65534, 65534)
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

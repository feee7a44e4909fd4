"""systemd as the first process of its own namespaces, over an overlay of this machine's files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.servers.brokers import ROOT
from tests.support.deadline import eventually

#: Run in new namespaces; $1 is a directory to mount all on. What is written goes into memory.
BOOT = """\
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
ip link set lo up
# The service's user must reach this Python; nothing else shall start.
for above in $2; do chmod o+x "./$above"; done
rm -rf etc/systemd/system/*.wants etc/systemd/system/default.target
mount --make-rshared /
exec chroot . env container=other /lib/systemd/systemd --unit=basic.target --show-status=no
"""

WATCHMAN = f"""\
#!/bin/sh
exec env PYTHONPATH={ROOT} {sys.executable} -m watchman "$@"
"""


class Booted:
    """A machine with systemd and the watchman of this checkout, thrown away in the end."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self._directory = directory

    def __enter__(self) -> Self:
        namespaces = ["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net"]
        real = Path(sys.executable).resolve()
        above = {str(path) for place in (real, ROOT) for path in place.parents}
        self._process = subprocess.Popen(
            [
                *("unshare", *namespaces, "--fork", "--kill-child"),
                *("sh", "-euc", BOOT, "sh", self._directory, " ".join(above)),
            ],
            stdin=subprocess.DEVNULL,
        )
        try:
            self._first = eventually(self._find_first)
            eventually(self._has_started, timeout=60)
            self.write("/opt/watchman/bin/watchman", WATCHMAN, 0o755)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The kernel ends everything in the pid namespace with its first process, and the mounts.
        self._process.kill()
        self._process.wait(20)

    def write(self, place: str, text: str, mode: int = 0o644) -> None:
        script = f'mkdir -p "$(dirname {place})" && cat >{place} && chmod {mode:o} {place}'
        done = self._in_it(script, stdin=text)
        assert done.returncode == 0, done.stdout

    def run(self, script: str) -> str:
        done = self._in_it(script)
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def attempt(self, script: str) -> str:
        return self._in_it(script).stdout

    def _in_it(self, script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--net", "--cgroup"]
        return subprocess.run(
            [*enter, "chroot", self.root, "sh", "-euc", script],
            env={"PATH": os.environ["PATH"]},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    def _has_started(self) -> bool:
        # Degraded where a unit of this machine does not start in it, which is no matter of ours.
        return self.attempt("systemctl is-system-running").strip() in ("running", "degraded")

    def _find_first(self) -> int:
        """The pid of systemd, once it is that."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for pid in children.read_text().split():
            if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                return int(pid)
        return 0

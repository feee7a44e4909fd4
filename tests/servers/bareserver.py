"""A bare Debian for tests: one that debootstrap made, in namespaces of its own, thrown away after.

The root is an overlay in memory over a directory that is kept in the cache, so only the first test
ever waits for debootstrap. It has no init; nothing starts by itself.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.support.deadline import eventually

#: What pip and apt are told here of where to find packages, they are told there.
HANDED_ON = re.compile(r"(?i)PIP_.*|.*_proxy|SSL_CERT_FILE")
HANDED_OVER = ("/etc/resolv.conf", "/etc/pip.conf", "/root/.config/pip/pip.conf")
HANDED_OVER_DIRECTORIES = ("/etc/apt", "/usr/share/keyrings")

#: The bundle that Debian's ca-certificates writes, of what is here and what is in the other place.
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
OWN_CERTIFICATES = "/usr/local/share/ca-certificates/machine.crt"

#: Run in a mount namespace of its own; $1 is a directory to mount all on, $2 what debootstrap made.
#: The shell stays as the first process of its pid namespace, and as such reaps orphans.
SETUP = """\
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
hostname server
ip link set lo up
touch "$1/root/ready"
sleep infinity & wait
"""


class BareServer:
    """`directory` is empty; what is mounted there is seen from inside only.

    Commands run in it as root, with no network but its own loopback unless they ask for one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = ""

    def __enter__(self) -> Self:
        command = ["unshare", "--mount", "--pid", "--net", "--uts", "--fork", "--kill-child"]
        with base() as lower:
            self._process = subprocess.Popen(
                [*command, "sh", "-euc", SETUP, "sh", self.directory, lower],
                stdin=subprocess.DEVNULL,
            )
        try:
            self._first = eventually(self._find_first)
            eventually(lambda: self._in_it("test", "-e", "/ready").returncode == 0)
            self._hand_over()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Shown where a test fails.
        sys.stdout.write(self.log)
        # The kernel ends everything in the pid namespace with its first process, and the mounts.
        self._process.kill()
        self._process.wait(20)

    def put(self, source: Path, place: str) -> None:
        """Copy a directory of ours to an absolute path there, symlinks followed."""
        unpack = 'mkdir -p "$1" && tar -C "$1" -x --no-same-owner'
        with subprocess.Popen(["tar", "-C", source, "-ch", "."], stdout=subprocess.PIPE) as tar:
            enter = ["nsenter", f"--target={self._first}", "--mount", "sh", "-c", unpack, "sh"]
            place = f"{self.directory}/root{place}"
            subprocess.run([*enter, place], stdin=tar.stdout, check=True, timeout=60)

    def write(self, place: str, text: str, mode: int = 0o644) -> None:
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        done = self._in_it("sh", "-c", script, "sh", place, f"{mode:o}", stdin=text)
        assert done.returncode == 0, done.stdout

    def run(self, script: str, *, directory: str = "/", network: bool = False) -> str:
        """Run a script, which must succeed, and return what it says."""
        done = self.attempt(script, directory=directory, network=network)
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def attempt(
        self, script: str, *, directory: str = "/", network: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of sh as somebody at a terminal would, who stops at the first failure."""
        # Not on stdin, of which programs in it may read.
        done = self._in_it("sh", "-euc", script, directory=directory, network=network)
        self.log += f"{script}\n--- {done.returncode}\n{done.stdout}\n"
        return done

    def _in_it(
        self, *command: str, stdin: str = "", directory: str = "/", network: bool = False
    ) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--uts"]
        change = ["chroot", f"{self.directory}/root", "env", "--chdir", directory]
        return subprocess.run(
            [*enter, *([] if network else ["--net"]), *change, *command],
            env=_environment(),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )

    def _find_first(self) -> str:
        """The first process of the pid namespace, as seen from here; '' before there is one."""
        assert self._process.poll() is None, "it could not be made"
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()

    def _hand_over(self) -> None:
        for file in filter(os.path.isfile, HANDED_OVER):
            self.write(file, Path(file).read_text())
        for directory in HANDED_OVER_DIRECTORIES:
            self.put(Path(directory), directory)
        if os.path.isfile(CERTIFICATES):
            for place in (CERTIFICATES, OWN_CERTIFICATES):
                self.write(place, Path(CERTIFICATES).read_text())
        self.write("/etc/hosts", f"127.0.0.1 localhost server\n{Path('/etc/hosts').read_text()}")
        # What one answers at a terminal.
        self.write("/etc/apt/apt.conf.d/zz-yes", 'APT::Get::Assume-Yes "true";\n')
        # The network is the machine's while packages are installed: no server is to start there.
        self.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)


def _environment() -> dict[str, str]:
    """That of root at a terminal, and what tells of packages."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    own = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    return {name: value for name, value in os.environ.items() if HANDED_ON.fullmatch(name)} | own


@contextmanager
def base() -> Iterator[Path]:
    """What debootstrap made, now or long ago, of this machine's own release and mirror."""
    release = _release()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "watchman-tests"
    cache.mkdir(parents=True, exist_ok=True)
    base = cache / f"debian-{release}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            new = cache / f"debian-{release}.new"
            shutil.rmtree(new, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", release, str(new), *_mirror(release)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            new.rename(base)
    yield base


def _release() -> str:
    text = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\w+)$", text, re.M)
    assert found, text
    return found[1]


def _mirror(release: str) -> list[str]:
    """Where apt has that release from; without an answer debootstrap knows a place."""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", f"Codename: {release}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [line.split()[1] for line in told.splitlines() if line.startswith(f"{release} ")][:1]

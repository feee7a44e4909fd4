"""A place where uploads of every kind arrive while the daemon is killed, and what is true then.

Uploads come as plain writes, by the socket's protocol, as lines of the transfer log, and from
sessions that run the shipped hook; they are moved or not, to this filesystem or to another.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.servers.brokers import ROOT, RedisServer
from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.nursery import Nursery, NurseryDaemon
from tests.support.translog import TOKEN, append, line
from watchman.sinks.pipeline import SENT
from watchman.sources.socket import wire

#: How uploads are moved: not at all, on one filesystem, and to another one.
WAYS = ("stay", "rename", "copy")

#: How an upload is told of. A session runs the shipped hook, and writes a line of the log.
KINDS = ("plain", "hook", "log", "session")

INI = """
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
drain = 5
[proftpd]
transfer_log = {tmp}/log/uploads.log
token = %(token)s
[broker:b]
url = %(broker)s
[watch:ftp]
path = {tmp}/ftp
proftpd = yes
confirm = %(confirm)s
[watch:plain]
path = {tmp}/plain
[task:csv]
pattern = *.csv
broker = b
task = tests.record
queue = %(queue)s
kwargs = {"original": "{original}"}
"""

MOVE = """
[move:%(name)s]
source = {tmp}/%(name)s
destination = %(destination)s/%(name)s
"""

#: What a reload has to add and take away again.
ANOTHER = """
[watch:another]
path = {tmp}/another
"""

#: Tasks that one kill may have sent twice: what was sent together, and not written down yet.
REPEATED = SENT

#: Seconds that a held upload waits for ProFTPD's word.
CONFIRM = 0.2

#: Seconds without any progress after which a place has settled as far as it ever will.
SETTLED = 30.0

#: Seconds that a daemon may take for a few uploads, on a busy machine.
PATIENCE = 30.0

#: Names of what may be there for a moment, and never afterwards.
SCRAPS = re.compile(r"^\.watchman-|\.tmp$|\.new$")

#: What a session of ProFTPD does: its hooks' parent, who writes the log and is dead soon after.
SESSION = """\
/usr/bin/python3 -IS "$0" --socket "$1" started user=alice path="$2"
cat > "$2"
/usr/bin/python3 -IS "$0" --socket "$1" completed user=alice path="$2"
printf '%s%s%s\\n' "$4" $$ "$5" >> "$3"
"""


@dataclass
class Findings:
    """What a place looked like when all had settled: paths, but for the count of repeats."""

    uploads: int
    lost: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    second_id: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)
    scraps: list[str] = field(default_factory=list)
    repeated: int = 0

    @property
    def wrong(self) -> dict[str, list[str]]:
        """All that must never be: repeats may, a few of them."""
        named = {
            "lost": self.lost,
            "strange": self.strange,
            "second id": self.second_id,
            "half": self.half,
            "scraps": self.scraps,
        }
        return {name: paths for name, paths in named.items() if paths}


class Place:
    """A directory with two watches, a transfer log, a daemon, and what was uploaded so far."""

    def __init__(
        self,
        nursery: Nursery,
        directory: Path,
        way: str = "stay",
        *,
        elsewhere: Path | None = None,
        server: RedisServer | None = None,
        segment: int = 0,
        delta: int = 0,
    ) -> None:
        """`elsewhere` is on another filesystem; `server` is used instead of the embedded broker."""
        self.directory = directory
        self.way = way
        self.server = server
        self.queue = f"q{time.time_ns()}"
        for name in ("ftp", "plain", "another", "log"):
            (directory / name).mkdir(parents=True)
        self.destination = directory / "to"
        if way == "copy":
            assert elsewhere is not None
            self.destination = elsewhere / directory.name
            assert elsewhere.stat().st_dev != directory.stat().st_dev
        if way != "stay":
            for name in ("ftp", "plain"):
                (self.destination / name).mkdir(parents=True)
        self.log = directory / "log" / "uploads.log"
        self.ini = INI % {
            "token": TOKEN,
            "broker": server.url if server else "filesystem://broker",
            "confirm": CONFIRM,
            "queue": self.queue,
        }
        if way != "stay":
            for name in ("ftp", "plain"):
                self.ini += MOVE % {"name": name, "destination": self.destination}
        self.log.touch()
        self.daemon = NurseryDaemon(nursery, directory, self.ini, segment=segment, delta=delta)
        #: What every upload holds, by its path.
        self.uploaded: dict[str, str] = {}
        # At first sight of a watch, what is there already is none of ours.
        self.daemon.start()
        self.daemon.stop()

    def upload(self, kind: str, name: str, size: int = 100) -> str:
        """Upload a file and tell of it; return its path. Whether the daemon hears is its affair."""
        path = self.directory / ("plain" if kind == "plain" else "ftp") / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = f"{path}\n" * (size // (len(str(path)) + 1) + 1)
        self.uploaded[str(path)] = content
        if kind == "session":
            hook = str(ROOT / "proftpd" / "watchman-hook")
            before, _, after = line(str(path), size=len(content), pid=0).decode().partition("|0|")
            told = [str(self.log), f"{before}|", f"|{after.rstrip()}"]
            arguments = [hook, str(self.directory / "watchman.sock"), str(path), *told]
            subprocess.run(
                ["sh", "-c", SESSION, *arguments], input=content, text=True, check=True, timeout=30
            )
        else:
            path.write_text(content)
        if kind == "log":
            append(self.log, line(str(path), size=len(content), pid=os.getpid()))
        elif kind == "hook":
            self.say("completed", path=str(path), user="alice")
        return str(path)

    def say(self, event: str, **fields: str) -> str:
        """Say it as a hook does; return the answer, "" if there is none."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(5.0)
            peer.connect(str(self.directory / "watchman.sock"))
            peer.sendall(wire.encode(event, fields))
            return peer.makefile().readline().rstrip("\n")
        return ""

    def reload(self, *, another: bool) -> None:
        self.daemon.configure(self.ini + ANOTHER * another)
        self.daemon.signal(signal.SIGHUP)

    def tasks(self) -> list[dict[str, Any]]:
        """What was published, as {"id", "path", "original"}; a message that is half is `None`."""
        if self.server is not None:
            with redis.Redis(port=self.server.port) as connection:
                messages = list(reversed(connection.lrange(self.queue, 0, -1)))
        else:
            files = sorted((self.directory / "broker").glob("*.msg"))
            messages = [file.read_bytes() for file in files]
        return [_task(message) for message in messages]

    def published(self) -> int:
        """How many messages there are; quicker than `tasks`."""
        if self.server is not None:
            return self.server.length(self.queue)
        broker = self.directory / "broker"
        return sum(n.endswith(".msg") for n in os.listdir(broker)) if broker.exists() else 0

    def recover(self) -> Findings:
        """Start the daemon undisturbed, let all settle, end it, and look."""
        if self.daemon.process is None:
            self.daemon.start()
        before, deadline = -1, 0.0
        while not (self.published() >= len(self.uploaded) and self._is_done()):
            if (now := self.published()) != before:
                before, deadline = now, time.monotonic() + SETTLED
            elif time.monotonic() > deadline:
                return self.look()  # which says what is missing
            time.sleep(0.05)
        self.daemon.stop()
        assert "Traceback" not in self.daemon.log, self.daemon.log
        return self.look()

    def _is_done(self) -> bool:
        if self.daemon.queue():
            return False
        originals = {task["original"] for task in self.tasks()}
        return len(originals) >= len(self.uploaded)

    def look(self) -> Findings:
        tasks = self.tasks()
        ids: dict[str, set[str]] = {}
        places: dict[str, set[str]] = {}
        for task in tasks:
            ids.setdefault(task["original"], set()).add(task["id"])
            places.setdefault(task["original"], set()).add(task["path"])
        findings = Findings(len(self.uploaded))
        findings.lost = sorted(self.uploaded.keys() - ids.keys())
        findings.strange = sorted(ids.keys() - self.uploaded.keys())
        findings.second_id = sorted(path for path, found in ids.items() if len(found) > 1)
        findings.repeated = len(tasks) - len(ids)
        findings.half = sorted(
            place
            for original, found in places.items()
            for place in found
            if _read(place) != self.uploaded.get(original)
        )
        named = {place for found in places.values() for place in found}
        findings.strange += sorted(self._files() - named - set(findings.lost))
        findings.scraps = sorted(self._scraps())
        return findings

    def _files(self) -> set[str]:
        """Every file that watches and destinations hold."""
        roots = [self.directory / "ftp", self.directory / "plain"]
        if self.way != "stay":
            roots.append(self.destination)
        return {
            os.path.join(directory, name)
            for root in roots
            for directory, _, names in os.walk(root)
            for name in names
        }

    def _scraps(self) -> Iterator[str]:
        for root in {self.directory, self.destination}:
            for directory, _, names in os.walk(root):
                yield from (os.path.join(directory, n) for n in names if SCRAPS.search(n))

    def remove(self) -> None:
        """Make room: a long run has many places."""
        self.daemon.kill()
        shutil.rmtree(self.directory)
        shutil.rmtree(self.destination, ignore_errors=True)
        if self.server is not None:
            self.server.ask("DEL", self.queue)


def _task(message: bytes) -> dict[str, Any]:
    try:
        values = json.loads(message)
        (path,), kwargs, _ = json.loads(base64.b64decode(values["body"]))
    except ValueError:
        return {"id": "", "path": "", "original": f"half a message: {message[:80]!r}"}
    return {"id": values["headers"]["id"], "path": path, "original": kwargs["original"]}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


class Load:
    """A thread for each kind that uploads, `rate` a second or as many as it can, until told.

    Sessions come twenty times less often: each of their hooks is a Python process.
    """

    def __init__(self, place: Place, rng: random.Random, *, rate: float) -> None:
        self._place = place
        self._rng = random.Random(rng.random())
        self._begun = len(place.uploaded)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run, args=(kind, (20 if kind == "session" else 1) / rate), daemon=True
            )
            for kind in KINDS
        ]
        self.error: BaseException | None = None

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert self.error is None, self.error

    def _run(self, kind: str, pause: float) -> None:
        number = self._begun
        try:
            while not self._stopping.wait(pause):
                number += 1
                size = self._rng.choice((1, 100, 5_000, 60_000))
                self._place.upload(kind, f"{kind}{number // 50}/{number}", size)
        except BaseException as e:
            self.error = e


#: How a daemon meets its end: at a random moment of its work or of its start, while it stops,
#: while it reloads, and at a random call of a kind that changes something.
ENDS = ("work", "work", "work", "start", "stop", "reload", "call")

#: Calls that change something on disk or tell somebody; the last before a kill.
CHANGES = (
    *("fdatasync", "fsync", "rename", "renameat2", "linkat", "link", "unlink", "unlinkat", "write"),
    *("ftruncate", "sendto", "mkdirat", "pwrite64", "sendfile", "copy_file_range"),
)


def kill_at_random(place: Place, rng: random.Random, longest: float) -> bool:
    """Start the daemon and kill it somehow; return whether it was alive until then."""
    daemon, end = place.daemon, rng.choice(ENDS)
    if end == "start":
        daemon.begin()
        time.sleep(rng.uniform(0.0, 0.12))
    else:
        daemon.start()
        if end != "call":
            time.sleep(rng.uniform(0.0, longest))
    process = daemon.process
    assert process is not None
    if end == "stop":
        daemon.signal(signal.SIGTERM)
        time.sleep(rng.uniform(0.0, 0.05))
    elif end == "reload":
        place.reload(another=rng.random() < 0.5)
        time.sleep(rng.uniform(0.0, 0.1))
    elif end == "call":
        call, when = rng.choice(CHANGES), int(rng.expovariate(1 / 15)) + 1
        tracer = attach(
            daemon, [process.pid], "-f", "-e", f"inject={call}:signal=SIGKILL:when={when}"
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(longest)
        alive = process.poll() in (None, -signal.SIGKILL)
        finish(daemon, tracer)
        return alive
    alive = process.poll() is None
    daemon.kill()
    return alive


def attach(daemon: Daemon, threads: Sequence[int], *options: str) -> subprocess.Popen[bytes]:
    """Run strace on threads of the daemon; return once it is attached to them."""
    log = daemon.directory / "strace.log"
    targets = [word for thread in threads for word in ("-p", str(thread))]
    tracer = subprocess.Popen(
        ["strace", "-qq", "-o", str(log), *options, *targets], stderr=subprocess.DEVNULL
    )

    def traced() -> bool:
        if tracer.poll() is not None:
            return True  # hit at once
        try:
            states = [Path(f"/proc/{thread}/status").read_text() for thread in threads]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return all(f"TracerPid:\t{tracer.pid}\n" in state for state in states)

    eventually(traced)
    return tracer


def finish(daemon: NurseryDaemon, tracer: subprocess.Popen[bytes]) -> None:
    """Kill what may be dead already, and see its tracer go."""
    daemon.signal(signal.SIGKILL)
    see_end(tracer)
    daemon.kill()


def see_end(tracer: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a tracer that was told to end, or whose process was; kill it if need be.

    It may wait for a process that nobody but it knows of. Of a process that is ending it may wait
    for the first thread, whose end is told only when it has asked for that of the others.
    """
    try:
        tracer.wait(5)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait(5)


def threads_of(daemon: Daemon) -> list[int]:
    """The daemon's threads, which it always starts in the same order."""
    assert daemon.process is not None
    tasks = f"/proc/{daemon.process.pid}/task"
    # The name resolver and the like may use one for a moment.
    steady = eventually(
        lambda: (t := os.listdir(tasks)) and not time.sleep(0.05) and t == os.listdir(tasks) and t
    )
    return sorted(int(thread) for thread in steady)


def calls(log: Path) -> Counter[tuple[int, str]]:
    """How often each thread made each call: that is how strace counts for an injection."""
    lines = log.read_text(errors="replace").splitlines()
    found = [match for line in lines if (match := re.match(r"(\d+) +(\w+)\(", line))]
    return Counter((int(match[1]), match[2]) for match in found)


def settled(place: Place) -> int:
    """How many uploads the journal says are done, without asking the daemon, which would count."""
    segments = (place.directory / "spool" / "journal").iterdir()
    return sum(segment.read_bytes().count(b'{"event":"done"') for segment in segments)


#: What touches a file or a socket and may leave something half done.
CALLS = (
    "read,write,pwrite64,pread64,openat,close,newfstatat,fstat,fcntl,getdents64,fdatasync,fsync,"
    "ftruncate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,link,linkat,flock,mmap,sendto,"
    "recvfrom,sendmsg,recvmsg,connect,inotify_add_watch,sendfile,copy_file_range,fchmod,fchown,"
    "utimensat"
)

#: Of these only, where much is read: at a start, and in an end.
WRITES = (
    "write,pwrite64,fdatasync,fsync,ftruncate,rename,renameat2,unlink,unlinkat,link,linkat,mkdirat,"
    "inotify_add_watch,flock,sendfile,copy_file_range"
)

#: What is told of in a short scenario, one after the other: a batch of two would make other calls.
SHORT = ("plain", "hook", "log")


class Moment:
    """A short piece of the daemon's life at each call of which it is killed.

    `work`: three uploads, one after the other. `start`: it begins with three that came before.
    `stop`: it ends with three in hand.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def run(self, place: Place, options: Sequence[str], thread: int | None = None) -> bool:
        """Live through it under strace, with its options, on one thread or on all of them.

        Return whether the daemon was killed. It is dead afterwards in any case.
        """
        daemon = place.daemon
        if self.what == "start":
            for number, kind in enumerate(SHORT):
                place.upload(kind, str(number))
            daemon.halted = True
            daemon.begin()
            daemon.halted = False
            process = daemon.process
            assert process is not None
            eventually(lambda: _state(process.pid) == "T")
            tracer = attach(daemon, [process.pid], "-f", *options)
            daemon.signal(signal.SIGCONT)
            eventually(lambda: process.poll() is not None or settled(place) == len(SHORT), PATIENCE)
        else:
            daemon.start()
            process = daemon.process
            assert process is not None
            eventually(lambda: daemon.log[daemon.begun :].count("Scanned watch") == 2, PATIENCE)
            if self.what == "work":
                self._threads = threads = threads_of(daemon)
                traced = threads if thread is None else [threads[thread]]
                tracer = attach(daemon, traced, *options)
                for number, kind in enumerate(SHORT):
                    place.upload(kind, str(number))
                    eventually(
                        lambda n=number: process.poll() is not None or settled(place) > n, PATIENCE
                    )
            else:
                tracer = attach(daemon, [process.pid], "-f", *options)
                for number, kind in enumerate(SHORT):
                    place.upload(kind, str(number))
                daemon.signal(signal.SIGTERM)
                process.wait(PATIENCE)
        hit = process.poll() == -signal.SIGKILL
        finish(daemon, tracer)
        return hit

    def points(self, places: Sequence[Place]) -> list[Point]:
        """Count the calls in several undisturbed runs, each in a place of its own."""
        runs = []
        for place in places:
            trace = CALLS if self.what == "work" else WRITES
            self.run(place, ["-e", f"trace={trace}"])
            counted = calls(place.directory / "strace.log")
            if self.what == "work":
                order = {thread: index for index, thread in enumerate(self._threads)}
                runs.append(Counter({(order[t], call): n for (t, call), n in counted.items()}))
            else:
                # Whichever thread makes a call for the n-th time first.
                most: Counter[tuple[int, str]] = Counter()
                for (_, call), count in counted.items():
                    most[0, call] = max(most[0, call], count)
                runs.append(most)
        return points(runs, by_thread=self.what == "work")

    def kill(self, place: Place, point: Point) -> tuple[bool, Findings]:
        """Live through it until a call, and recover; return whether it was killed, what is then."""
        inject = f"inject={point.call}:signal=SIGKILL:when={point.when}"
        options = ["-e", f"trace={point.call}", "-e", inject]
        hit = self.run(place, options, point.thread)
        # Whoever uploads does not know.
        for number, kind in enumerate(SHORT[len(place.uploaded) :], len(place.uploaded)):
            place.upload(kind, str(number))
        return hit, place.recover()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@dataclass(frozen=True, slots=True)
class Point:
    """A call at which the daemon is killed: the `when`-th of its kind in a thread, by its order.

    Without a thread, whichever thread makes that many of them first.
    """

    thread: int | None
    call: str
    when: int


def points(runs: Sequence[Counter[tuple[int, str]]], *, by_thread: bool) -> list[Point]:
    """All calls that each of several counted runs has made, by (thread, call)."""
    return [
        Point(thread if by_thread else None, call, n)
        for thread, call in sorted(runs[0])
        for n in range(1, min(run[thread, call] for run in runs) + 1)
    ]


def sample(points: Sequence[Point], count: int) -> list[Point]:
    """At least `count` of the points, evenly spread; others each day, until it was all of them.

    The day is printed, and taken from $CRASH_DAY where that is set: to see a failure again.
    """
    step = max(1, len(points) // count)
    print(f"CRASH_DAY={day()}: every {step}th of {len(points)} calls")
    return list(points[day() % step :: step])


def chance(name: str) -> random.Random:
    """A source of chance that is another each day, printed as by `sample`."""
    print(f"CRASH_DAY={day()}: seed of {name}")
    return random.Random(f"{day()} {name}")


def day() -> int:
    return int(os.environ.get("CRASH_DAY") or time.time() // 86400)

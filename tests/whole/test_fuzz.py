"""What strangers, disks and editors may bring: no crash, no hang, no traceback. See `make fuzz`.

Each input goes to the real class, in a second at most; some go to a real daemon.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.servers.daemon import Daemon
from tests.support import translog
from tests.support.deadline import eventually
from tests.support.translog import TOKEN
from watchman.config import inifile
from watchman.errors import ConfigError, ForeignRecord, RequestRefused
from watchman.sources.socket.requests import EVENTS, FIELDS, Request
from watchman.sources.socket.wire import REQUEST_LIMIT, Splitter
from watchman.sources.transferlog.lines import Interpreter, cut, parse
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.uploads.upload import FileState

#: Inputs for each part: few in `make test`, and as many as the environment says in `make fuzz`.
INPUTS = int(os.environ.get("FUZZ", "100"))

#: Seconds that one input may take.
HANG = 1.0

SECRET = f"{TOKEN}|".encode()

fuzzed = settings(
    max_examples=INPUTS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)

#: By part: inputs, and those that took too long.
COUNTED: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print in the end how many inputs there were."""
    yield
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        reporter = request.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            parts = ", ".join(f"{count} {part}" for part, count in sorted(COUNTED.items()))
            failed = len(reporter.stats.get("failed", []))
            reporter.write_line(f"\nTried {parts}: {failed} crashes, hangs and tracebacks.")


@contextlib.contextmanager
def counted(part: str) -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < HANG, "hangs"
    COUNTED[part] += 1


def damaged(whole: bytes, changes: list[tuple[float, bytes, int]]) -> bytes:
    """Replace, insert or cut bytes at places given as shares of the whole."""
    data = bytearray(whole)
    for share, new, length in changes:
        at = int(share * len(data))
        data[at : at + length] = new
    return bytes(data)


damage = st.lists(
    st.tuples(st.floats(0, 1), st.binary(max_size=20), st.integers(0, 50)), min_size=1, max_size=5
)
values = st.one_of(
    st.binary(max_size=50),
    st.sampled_from([b"yes", b"9" * 4300, b"\xd9\xa1", b"/" + b"a/" * 3000, b"\x1b[31m\n", b"-1"]),
)
requests = st.lists(
    st.tuples(st.sampled_from([*FIELDS, "event", "colour"]), values), max_size=8
).flatmap(
    lambda fields: st.sampled_from(list(EVENTS)).map(
        lambda event: b"\0".join(
            [f"event={event}".encode(), *(k.encode() + b"=" + v for k, v in fields)]
        )
    )
)


@fuzzed
@given(request=st.one_of(st.binary(max_size=300), requests))
def test_a_request(request: bytes) -> None:
    with counted("requests"), contextlib.suppress(RequestRefused):
        found = Request.decode(request)
        notification = found.notification()
        if notification is not None:
            assert notification.size is None or 0 <= notification.size < 2**63


@fuzzed
@given(stream=st.lists(st.one_of(st.binary(max_size=100), requests), max_size=20))
def test_a_stream_of_requests(stream: list[bytes]) -> None:
    with counted("streams"):
        splitter = Splitter()
        with contextlib.suppress(RequestRefused):
            for data in stream:
                splitter.feed(data)
                while (request := splitter.take()) is not None:
                    assert 0 < len(request) < REQUEST_LIMIT


@fuzzed
@given(
    names=st.lists(st.binary(max_size=30), max_size=5),
    changes=st.lists(damage, max_size=1),
    more=st.booleans(),
)
def test_a_transfer_log(
    names: list[bytes], changes: list[list[tuple[float, bytes, int]]], more: bool
) -> None:
    log = b"".join(translog.line(b"/srv/" + name.replace(b"\0", b"")) for name in names)
    for one in changes:
        log = damaged(log, one)
    with counted("logs"):
        pieces, used = cut(log, SECRET, more=more)
        assert 0 <= used <= len(log)
        interpreter = Interpreter()
        for piece in pieces:
            with contextlib.suppress(ForeignRecord):
                record = parse(piece, SECRET)
                interpreter.notification(record, record.path)


@fuzzed
@given(changes=damage, count=st.integers(1, 30))
def test_a_journal(changes: list[tuple[float, bytes, int]], count: int) -> None:
    with temporary() as directory, counted("journals"):
        names = str(directory / "journal"), str(directory / "history")
        journal = Journal(*names, segment_size=500)
        list(journal.replay())
        for n in range(count):
            journal.write([{"event": "accepted", "id": str(n), "path": "/srv/\udcff"}])
        journal.close()
        segments = sorted((directory / "journal").iterdir())
        for segment in segments[:: max(1, len(segments) // 3)]:
            segment.write_bytes(damaged(segment.read_bytes(), changes))
        again = Journal(*names, segment_size=500)
        ids = [record["id"] for _, record in again.replay()]
        assert set(ids) <= {str(n) for n in range(count)}
        again.write([{"event": "accepted", "id": "new"}])
        again.close()
        last = Journal(*names, segment_size=500)
        assert [record["id"] for _, record in last.replay()][-1] == "new"
        last.close()


@fuzzed
@given(changes=damage, count=st.integers(0, 50))
def test_a_ledger(changes: list[tuple[float, bytes, int]], count: int) -> None:
    with temporary() as directory, counted("ledgers"):
        state = [FileState(1, n, n, 10**18, 10**18) for n in range(count)]
        ledger = Ledger(str(directory / "ledger"), str(directory))
        ledger.open()
        ledger.begin(0)
        for n in range(count):
            ledger.put(f"{n}.csv", state[n], sample=n)
        ledger.flush()
        ledger.close()
        file = directory / "ledger"
        file.write_bytes(damaged(file.read_bytes(), changes))
        again = Ledger(str(file), str(directory))
        again.open()
        for n in range(count):
            again.get(f"{n}.csv", state[n])
        again.close()


WORDS = st.sampled_from(
    ["[watch:a]", "[task:b]", "[broker:c]", "[move:d]", "path = ", "pattern = ", "*" * 50, "{x}",
     "url = ", "redis://h", "filesystem://x", "\n", "\n  ", "[" * 100, "](", "%(x)s", "$", ";#"]
)  # fmt: skip


@fuzzed
@given(text=st.lists(st.one_of(WORDS, st.text(max_size=10)), max_size=40).map("".join))
def test_an_ini_file(text: str) -> None:
    with temporary() as directory, counted("INI files"):
        file = directory / "watchman.ini"
        file.write_bytes(text.encode(errors="surrogatepass"))
        with contextlib.suppress(ConfigError):
            inifile.load(str(file))


def test_a_pattern_of_a_hundred_thousand_brackets_ends(tmp_path: Path) -> None:
    file = tmp_path / "watchman.ini"
    for pattern in ("[" * 100_000, "*[" * 50_000, "[!" * 50_000):
        file.write_text(
            "[watchman]\nspool = spool\n[broker:b]\nurl = filesystem://b\n"
            f"[watch:w]\npath = in\n[task:t]\npattern = {pattern}\nbroker = b\ntask = t\n"
        )
        with counted("patterns"), contextlib.suppress(ConfigError):
            inifile.load(str(file))


@pytest.fixture
def daemon(tmp_path: Path, start_watchman: Callable[..., Daemon]) -> Daemon:
    (tmp_path / "in").mkdir()
    (tmp_path / "log").mkdir()
    ini = "[proftpd]\ntransfer_log = log/uploads.log\ntoken = {token}\n[broker:b]\n"
    ini += "url = filesystem://broker\n[watch:in]\npath = in\nproftpd = yes\n"
    ini += "[task:csv]\npattern = *.csv\nbroker = b\ntask = tests.record\n"
    return start_watchman(ini.replace("{token}", TOKEN))


def test_a_daemon_lives_on(daemon: Daemon, tmp_path: Path) -> None:
    """The fixture fails it if there was a traceback."""
    log = tmp_path / "log/uploads.log"

    @settings(fuzzed, max_examples=max(50, INPUTS // 10))
    @given(
        stream=st.lists(st.one_of(st.binary(max_size=200), requests), max_size=10),
        line=st.one_of(st.binary(max_size=100), st.binary(max_size=40).map(named)),
    )
    def fuzz(stream: list[bytes], line: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as peer, log.open("ab") as written:
            peer.settimeout(HANG)
            peer.connect(str(daemon.directory / "watchman.sock"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # Nothing that stops or pauses it.
                told = [one for one in stream if b"event=pause" not in one]
                peer.sendall(b"\0\0".join(told) + b"\0\0")
            written.write(line)
        COUNTED["peers and lines"] += 1

    fuzz()
    eventually(lambda: daemon.status()["sources"], timeout=30)
    assert daemon.run("queue").returncode == 0


def named(name: bytes) -> bytes:
    return translog.line(b"/srv/" + name.replace(b"\0", b""))


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    # Where fsync takes no time.
    directory = Path(tempfile.mkdtemp(prefix="watchman-fuzz-", dir="/dev/shm"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)

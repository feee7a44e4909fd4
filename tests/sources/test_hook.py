"""watchman-hook against real sockets: what it sends, how long it takes, what it says."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.servers.brokers import ROOT, Server
from tests.servers.proftpd import SHIPPED, UID
from tests.support.recorder import Recorder
from watchman.uploads.session import is_alive, session_in

HOOK = str(SHIPPED / "watchman-hook")

#: Seconds that an FTP client may wait for a hook.
LIMIT = 0.2

LISTENER = """
import signal, sys
from watchman.sources.socket.listener import Listener

Listener(sys.argv[1], submit=None, query=lambda event, fields: [], admins=()).start()
print("ready", flush=True)
signal.pause()
"""


class ListenerProcess(Server):
    """A real listener in a process of its own, so that it can be frozen."""

    def command(self):
        return [sys.executable, "-c", LISTENER, str(self.directory / "watchman.sock")]

    def environment(self):
        return super().environment() | {"PYTHONPATH": str(ROOT)}

    def is_ready(self):
        return "ready" in self.log


def command(path, *arguments):
    return [HOOK, "--socket", str(path), *arguments]


def run(path, *arguments, env=None, **options):
    """The hook as mod_exec runs it: no environment, nothing to read; it must be mute."""
    done = subprocess.run(
        command(path, *arguments),
        env=env or {},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=10,
        check=False,
        **options,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def seconds(path, attempts=5):
    """The shortest of several runs' times, as the machine may have other things to do."""
    times = []
    for _ in range(attempts):
        before = time.monotonic()
        run(path, "completed", "path=/srv/a.csv")
        times.append(time.monotonic() - before)
    return min(times)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "watchman.sock"


@pytest.fixture
def daemon(path):
    with Recorder(path) as recorder:
        yield recorder


@pytest.fixture
def peer(path):
    """A socket that listens; what it does with those who connect is the test's."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(100)
        yield listening


# What it sends.


def test_a_request_is_sent_byte_for_byte(path, daemon):
    run(path, "completed", "user=alice", "client=::1", "path=/srv/ftp/a b.csv", "size=12")
    [heard] = daemon.heard
    assert heard.raw == (
        b"event=completed\0user=alice\0client=::1\0path=/srv/ftp/a b.csv\0size=12\0\0"
    )


@pytest.mark.parametrize("env", [{}, {"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}])
def test_every_byte_of_a_name_arrives(path, daemon, env):
    name = b"/srv/" + bytes(byte for byte in range(1, 256) if byte != ord("/"))
    run(path, b"completed", b"path=" + name, env=env)
    assert daemon.heard[0].raw == b"event=completed\0path=" + name + b"\0\0"


def test_a_value_may_hold_equals_signs_and_percents(path, daemon):
    run(path, "completed", "path=/srv/a=b=%f.csv", "user=%")
    assert daemon.heard[0].raw == b"event=completed\0path=/srv/a=b=%f.csv\0user=%\0\0"


@pytest.mark.parametrize("value", ["", "-", "(none)", "%f", "%s"])
def test_what_mod_exec_does_not_know_is_left_out(path, daemon, value):
    run(path, "started", "user=alice", f"path={value}")
    assert daemon.heard[0].raw == b"event=started\0user=alice\0\0"


def test_an_event_may_come_alone(path, daemon):
    run(path, "ended")
    assert daemon.heard[0].raw == b"event=ended\0\0"


def test_the_longest_path_arrives(path, daemon):
    name = "/" + "\n" * 4094
    run(path, "renamed", f"from={name}", f"path={name}")
    assert daemon.heard[0].fields == {"event": "renamed", "from": name, "path": name}


def test_it_asks_itself_so_that_its_parent_is_known(path, daemon):
    run(path, "ended")
    assert daemon.heard[0].parent == os.getpid()


def test_it_works_with_its_standard_streams_closed(path, daemon):
    shell = f'exec "{HOOK}" --socket "$0" ended <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell, path], env={}, timeout=10).returncode == 0
    assert daemon.events == ["ended"]


def test_it_works_in_a_directory_that_is_gone(path, daemon, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = f'rmdir "{gone}" && exec "{HOOK}" --socket "$0" ended'
    assert subprocess.run(["sh", "-c", shell, path], env={}, cwd=gone, timeout=10).returncode == 0
    assert daemon.events == ["ended"]


def test_it_imports_nothing_beyond_what_sockets_are_made_of(path, daemon):
    """Each import would cost every upload: `import socket` nearly doubles the time."""

    def imported(*arguments):
        python = ["/usr/bin/python3", "-IS", "-X", "importtime"]
        done = subprocess.run([*python, *arguments], env={}, capture_output=True, timeout=10)
        return {line.split()[-1] for line in done.stderr.splitlines()}

    assert imported(*command(path, "ended")) - imported("-c", "pass") == {b"_socket"}
    assert daemon.events == ["ended"]


# How long it takes, and that it always ends with 0.


def test_a_peer_that_stays_silent_costs_at_most_its_limit(path, peer):
    assert 0.1 < seconds(path) < LIMIT


def test_a_full_backlog_costs_at_most_its_limit(path, peer):
    peer.listen(0)
    filling = []
    while True:
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        filling.append(one)
        try:
            one.connect(str(path))
        except BlockingIOError:
            break
    assert 0.1 < seconds(path) < LIMIT
    for one in filling:
        one.close()


def test_room_in_a_full_backlog_is_used(path, peer):
    peer.listen(0)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        hook = subprocess.Popen(command(path, "ended"), env={})
        time.sleep(0.05)
        peer.accept()[0].close()
        peer.settimeout(5)
        with peer.accept()[0] as served:
            assert served.recv(100) == b"event=ended\0\0"
    assert hook.wait(5) == 0


def test_a_frozen_daemon_costs_at_most_its_limit(tmp_path):
    with ListenerProcess(tmp_path / "listener") as listener:
        listener.freeze()
        assert 0.1 < seconds(listener.directory / "watchman.sock") < LIMIT


def test_what_has_begun_is_said_again_with_its_session_when_nobody_answers(path, peer):
    run(path, "started", "path=/srv/a.csv")
    with peer.accept()[0] as served:
        received = served.recv(1000)
    told = b"event=started\0path=/srv/a.csv\0"
    again, ended = received.removeprefix(told + b"\0"), b"\0\0"
    assert again.startswith(told + b"session=")
    assert again.endswith(ended)
    session = session_in(again[len(told + b"session=") : -len(ended)].decode())
    assert session.startswith(f"{os.getpid()}.")
    assert is_alive(session)


def test_a_peer_that_dribbles_costs_at_most_its_limit(path, peer):
    def dribble():
        while True:
            served, _ = peer.accept()
            with served:
                try:
                    while served.send(b"O"):
                        time.sleep(0.01)
                except OSError:
                    if stopped.is_set():
                        return

    stopped = threading.Event()
    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        assert 0.1 < seconds(path) < LIMIT
    finally:
        stopped.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(path))
        thread.join()


def test_no_socket_costs_no_time_at_all(tmp_path):
    assert seconds(tmp_path / "missing") < LIMIT / 2


def test_a_socket_that_was_left_behind_costs_no_time_at_all(path):
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    assert seconds(path) < LIMIT / 2


@pytest.mark.parametrize(
    "answer", [b"", b"OK", b"\n", b"What?\n", b"ERROR no\n", b"\xff" * 100_000]
)
def test_an_answer_that_is_none_harms_nobody(path, answer):
    with Recorder(path, answer=answer) as daemon:
        run(path, "ended")
        assert daemon.events == ["ended"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--socket"],
        ["--socket", ""],
        ["--socket", "/" + "x" * 200, "ended"],
        ["ended", "path"],
        ["ended", "=value"],
        ["ended", ""],
        [],
    ],
)
def test_wrong_usage_ends_with_0(arguments):
    done = subprocess.run([HOOK, *arguments], env={}, capture_output=True, timeout=10)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGPIPE])
def test_a_signal_while_it_waits_ends_it_with_0(path, peer, number):
    hook = subprocess.Popen(command(path, "ended"), env={}, stderr=subprocess.PIPE)
    peer.settimeout(5)
    with peer.accept()[0] as served, hook:
        assert served.recv(100) == b"event=ended\0\0"
        hook.send_signal(number)
        assert hook.wait(5) == 0
        assert hook.stderr.read() == b""


def test_a_peer_that_hangs_up_at_once_harms_nobody(path, peer):
    hook = subprocess.Popen(command(path, "completed", "path=/" + "x" * 60_000), env={})
    peer.settimeout(5)
    peer.accept()[0].close()
    assert hook.wait(5) == 0


@pytest.mark.root
def test_a_socket_that_its_user_cannot_reach_harms_nobody(path, daemon, public_path):
    """tmp_path is closed to all but root."""
    hook = shutil.copy(HOOK, public_path)
    arguments = [hook, "--socket", path, "ended"]
    assert subprocess.run(arguments, env={}, user=UID, timeout=10).returncode == 0
    assert daemon.heard == []


# What it says, in a mount namespace with a /dev/log of its own.


@pytest.fixture
def system_log(tmp_path):
    """The receiving end of a syslog daemon."""
    directory = tmp_path / "dev"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(directory / "log"))
        receiving.settimeout(5)
        yield receiving


def run_with_log(tmp_path, *arguments):
    """Run the hook where the test's directory is /dev; returns its pid and the time it took."""
    # In a process of its own: the hook's time runs from the start of that.
    hook = 'sh -c \'echo $$; exec "$@"\' sh "$@"'
    script = f'mount --bind "$0" /dev && {{ {hook}; exit; }}'
    before = time.monotonic()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, tmp_path / "dev", HOOK, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=10,
    )
    assert done.returncode == 0
    return int(done.stdout), time.monotonic() - before


def lines(receiving):
    """All that was logged."""
    receiving.setblocking(False)
    found = []
    while True:
        try:
            found.append(receiving.recv(100_000))
        except BlockingIOError:
            return found


@pytest.mark.root
@pytest.mark.parametrize(
    "answer", [b"OK\n", b"OK 12\n", b"DUPLICATE 12\n", b"IGNORED not a match\n"]
)
def test_what_is_fine_is_not_said(tmp_path, path, system_log, answer):
    with Recorder(path, answer=answer) as daemon:
        expected = []
        for _ in range(10):
            expected.append("completed")
            run_with_log(tmp_path, "--socket", str(path), "completed", "path=/srv/a.csv")
            said = lines(system_log)
            # On a busy machine the answer may come too late for the hook, which it says.
            if not any(b"in time" in one for one in said):
                break
        assert daemon.events == expected
    assert said == []


@pytest.mark.root
def test_a_refusal_is_one_line_that_says_why_and_of_what(tmp_path, path, system_log):
    with Recorder(path, answer="ERROR 'é' is not yours\x1b\n".encode()):
        arguments = ["completed", "user=alice", b"path=/srv/\xff \n\x1b[2J.csv"]
        pid, _ = run_with_log(tmp_path, "--socket", str(path), *arguments)
    [line] = lines(system_log)
    assert line.decode() == (
        f"<28>watchman-hook[{pid}]: refused: '\\xe9' is not yours? "
        r"(completed 'user=alice' 'path=/srv/\udcff \n\x1b[2J.csv')"
    )


@pytest.mark.root
def test_a_time_out_is_one_line(tmp_path, path, peer, system_log):
    pid, _ = run_with_log(tmp_path, "--socket", str(path), "started", "path=/srv/a.csv")
    [line] = lines(system_log)
    assert line.decode() == (
        f"<28>watchman-hook[{pid}]: no answer on '{path}' in time, is the daemon busy or frozen?"
        " (started 'path=/srv/a.csv')"
    )


@pytest.mark.root
def test_a_missing_daemon_is_one_line(tmp_path, system_log):
    pid, _ = run_with_log(tmp_path, "--socket", "/nowhere/sock", "ended", "user=alice")
    [line] = lines(system_log)
    assert line.decode() == (
        f"<28>watchman-hook[{pid}]: no daemon answers on '/nowhere/sock':"
        " No such file or directory (ended 'user=alice')"
    )


@pytest.mark.root
def test_a_daemon_that_ends_meanwhile_is_one_line(tmp_path, path, system_log):
    with Recorder(path, answer=b""):
        run_with_log(tmp_path, "--socket", str(path), "ended")
    [line] = lines(system_log)
    assert b"ended before it had answered" in line


@pytest.mark.root
def test_wrong_usage_is_one_line(tmp_path, system_log):
    run_with_log(tmp_path, "completed", "/srv/a.csv")
    [line] = lines(system_log)
    assert b"watchman-hook [--socket PATH] EVENT [KEY=VALUE...]" in line


@pytest.mark.root
def test_without_an_option_it_speaks_to_the_packaged_socket(tmp_path, system_log):
    if os.path.exists("/run/watchman/watchman.sock"):
        pytest.skip("a daemon runs on this host")
    run_with_log(tmp_path, "ended")
    [line] = lines(system_log)
    assert b"no daemon answers on '/run/watchman/watchman.sock'" in line


@pytest.mark.root
def test_a_long_name_does_not_make_a_long_line(tmp_path, system_log):
    run_with_log(tmp_path, "--socket", "/nowhere", "completed", "path=/" + "\n" * 4000)
    [line] = lines(system_log)
    assert len(line) == 2000


@pytest.mark.root
def test_a_system_log_that_nobody_reads_delays_nobody(tmp_path, system_log):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
        filling.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                filling.sendto(b"x" * 1000, str(tmp_path / "dev" / "log"))
    # One of ten is enough: all would take LIMIT if it waited for the log.
    runs = (run_with_log(tmp_path, "--socket", "/nowhere", "ended") for _ in range(10))
    assert any(took < LIMIT / 2 for _, took in runs)

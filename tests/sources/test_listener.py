"""A real socket, real peers: friendly, slow, silent and hostile ones."""

import contextlib
import itertools
import json
import os
import resource
import socket
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from watchman.commands.shared import client
from watchman.errors import RequestRefused, SocketUnavailable, WatchmanError
from watchman.sources.socket.connection import IDLE, LINGER, Connection
from watchman.sources.socket.listener import Listener
from watchman.uploads.upload import Answer, Kind, Notification, Outcome, Source


class Dispatcher:
    """Takes what a listener submits; answers when told to, or at once."""

    def __init__(self):
        self.submitted = []
        self.at_once = True
        self.answers = {}

    def submit(self, notification, answer):
        if notification.path == "/broken":
            raise ZeroDivisionError
        self.submitted.append((notification, answer))
        if self.at_once:
            answer(Answer(Outcome.OK, f"id-{len(self.submitted)}"))

    def query(self, event, fields):
        if event in self.answers:
            return self.answers[event]
        if event == "explain" and fields["path"] == "/refused":
            raise WatchmanError("not\nthis one")
        if event == "explain" and fields["path"] == "/broken":
            raise ZeroDivisionError
        if event == "queue":
            return [{"path": "x" * 1000, "number": number} for number in range(5000)]
        return [{"event": event, **fields}]


@pytest.fixture
def dispatcher():
    return Dispatcher()


@contextlib.contextmanager
def listening(path, dispatcher, admins=()):
    listener = Listener(str(path), submit=dispatcher.submit, query=dispatcher.query, admins=admins)
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()
        listener.join()


@pytest.fixture
def path(tmp_path, dispatcher):
    path = tmp_path / "run" / "watchman.sock"
    with listening(path, dispatcher):
        yield str(path)


def connect(path):
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(10)
    connected.connect(path)
    return connected


def talk(path, data):
    """Everything that is answered to `data`, which ends the peer's part."""
    with connect(path) as connected, connected.makefile("rb") as answers:
        connected.sendall(data)
        connected.shutdown(socket.SHUT_WR)
        return answers.read()


def alive(path):
    return list(client.request(path, "status", timeout=2)) == [{"event": "status"}]


def test_a_resubmit_becomes_a_notification_and_is_answered_by_its_id(path, dispatcher):
    assert talk(path, b"event=resubmit\0path=/srv/a.csv\0\0") == b"OK id-1\n"
    [(notification, _)] = dispatcher.submitted
    assert notification == Notification(Kind.COMPLETED, "/srv/a.csv", Source.RESUBMIT)


def test_as_and_same_id_go_with_it(path, dispatcher):
    talk(path, b"event=resubmit\0path=/new/a\0as=/srv/a\0same_id=yes\0\0")
    [(notification, _)] = dispatcher.submitted
    assert notification.resubmit_as == "/srv/a"
    assert notification.same_id


def test_any_name_that_linux_allows_arrives(path, dispatcher):
    name = b"/srv/\xff\xfe \n\t=%s"
    assert talk(path, b"event=resubmit\0path=" + name + b"\0\0") == b"OK id-1\n"
    [(notification, _)] = dispatcher.submitted
    assert os.fsencode(notification.path) == name


def test_answers_keep_the_order_of_requests_whatever_order_they_are_known_in(path, dispatcher):
    dispatcher.at_once = False
    with connect(path) as connected, connected.makefile("rb") as answers:
        for number in range(3):
            connected.sendall(b"event=resubmit\0path=/srv/%d\0\0" % number)
        connected.sendall(b"event=status\0\0")
        eventually(lambda: len(dispatcher.submitted) == 3)
        for notification, answer in reversed(dispatcher.submitted):
            answer(Answer(Outcome.DUPLICATE, notification.path))
        assert [answers.readline() for _ in range(5)] == [
            b"DUPLICATE /srv/0\n",
            b"DUPLICATE /srv/1\n",
            b"DUPLICATE /srv/2\n",
            b'{"event": "status"}\n',
            b"OK 1\n",
        ]


def test_thousands_of_requests_follow_on_one_another(path):
    answers = list(client.resubmit(path, (f"/srv/{number}" for number in range(5000))))
    assert answers[0] == ("/srv/0", Outcome.OK, "id-1")
    assert answers[-1] == ("/srv/4999", Outcome.OK, "id-5000")


def test_requests_beyond_what_a_peer_may_have_unanswered_are_taken_later(path, dispatcher):
    dispatcher.at_once = False
    with connect(path) as connected, connected.makefile("rb") as answers:
        connected.sendall(b"event=resubmit\0path=/srv/a\0\0" * 1000)
        connected.shutdown(socket.SHUT_WR)
        for number in range(1000):
            eventually(lambda n=number: len(dispatcher.submitted) > n)
            assert len(dispatcher.submitted) <= number + 128
            dispatcher.submitted[number][1](Answer(Outcome.OK, str(number)))
            assert answers.readline() == b"OK %d\n" % number


def test_a_query_is_answered_by_lines_of_json_and_their_count(path):
    *lines, last = talk(path, b"event=explain\0path=/srv/\xff\0\0").splitlines()
    assert [json.loads(line) for line in lines] == [{"event": "explain", "path": "/srv/\udcff"}]
    assert last == b"OK 1"


def test_a_long_answer_arrives_whole(path):
    found = list(client.request(path, "queue"))
    assert [upload["number"] for upload in found] == list(range(5000))


def test_an_answer_is_made_as_its_peer_reads_and_others_get_theirs_in_between(path, dispatcher):
    made = []

    def numbers():
        for number in itertools.count():
            made.append(number)
            yield {"number": number, "text": "x" * 1000}

    dispatcher.answers["explain"] = numbers()
    with connect(path) as connected, connected.makefile("rb") as answers:
        connected.sendall(b"event=explain\0path=/srv/a\0\0")
        assert json.loads(answers.readline())["number"] == 0
        while True:
            before = len(made)
            assert alive(path)
            assert len(made) < 5000, "what nobody reads is not made"
            if len(made) == before:
                break
        for number in range(1, before + 1000):
            assert json.loads(answers.readline())["number"] == number
        assert len(made) > before


def test_an_answer_that_takes_long_to_find_delays_no_other(path, dispatcher):
    found = threading.Event()

    def search():
        while not found.is_set():
            time.sleep(0.001)
            yield None
        yield {"found": True}

    dispatcher.answers["explain"] = search()
    with connect(path) as connected, connected.makefile("rb") as answers:
        connected.sendall(b"event=explain\0path=/srv/a\0\0")
        for _ in range(3):
            assert alive(path)
        found.set()
        assert answers.readline() == b'{"found": true}\n'
        assert answers.readline() == b"OK 1\n"


def test_an_answer_that_fails_in_the_middle_ends_with_the_reason(path, dispatcher):
    def fail():
        yield {"number": 1}
        raise WatchmanError("no more")

    dispatcher.answers["explain"] = fail()
    assert talk(path, b"event=explain\0path=/srv/a\0\0") == b'{"number": 1}\nERROR no more\n'
    dispatcher.answers["explain"] = fail()
    with pytest.raises(RequestRefused, match="no more"):
        list(client.request(path, "explain", {"path": "/srv/a"}))


def test_a_query_that_is_refused_says_why_on_one_line(path):
    assert talk(path, b"event=explain\0path=/refused\0\0") == b"ERROR not this one\n"
    with pytest.raises(RequestRefused, match="not this one"):
        list(client.request(path, "explain", {"path": "/refused"}))


@pytest.mark.parametrize("event", [b"explain", b"resubmit"])
def test_an_error_of_ours_is_answered_and_the_listener_lives_on(path, event):
    assert talk(path, b"event=%s\0path=/broken\0\0" % event).startswith(b"ERROR an internal error")
    assert alive(path)


def test_unknown_fields_are_ignored(path, dispatcher):
    assert talk(path, b"colour=red\0event=resubmit\0path=/a\0later=\0\0") == b"OK id-1\n"
    assert talk(path, b"event=explain\0path=/a\0user=x\0\0").startswith(
        b'{"event": "explain", "path": "/a"}\n'
    )


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"path=/a\0\0", "field event is missing; it is one of started, completed"),
        (b"event=\0path=/a\0\0", "field event is missing"),
        (b"event=complete\0path=/a\0\0", "unknown event 'complete'; did you mean completed?"),
        (b"event=statsu\0\0", "unknown event 'statsu'; did you mean status?"),
        (b"event=\x1b[31m\xff\n\0\0", r"unknown event '\x1b[31m\udcff\n'; known are"),
        (b"event=" + b"x" * 60000 + b"\0\0", "unknown event 'xxxx"),
        (b"event=resubmit\0\0", "resubmit needs a field path"),
        (b"event=resubmit\0path=\0\0", "resubmit needs a field path"),
        (b"event=resubmit\0path=a/b\0\0", "path 'a/b' is not absolute; it begins with /"),
        (b"event=resubmit\0path=../etc\0\0", "path '../etc' is not absolute"),
        (b"event=resubmit\0path=/a\0as=a\0\0", "as 'a' is not absolute"),
        (b"event=resubmit\0path=/" + b"x" * 5000 + b"\0\0", "path is longer than 4095 bytes"),
        (b"event=resubmit\0path=/a\0path=/b\0\0", "field 'path' is repeated; give each field once"),
        (b"event=status\0event=status\0\0", "field 'event' is repeated"),
        (b"status\0\0", "a field is KEY=VALUE, ended by NUL; this one is 'status'"),
        (b"=status\0\0", "a field is KEY=VALUE"),
        (b"\xff\xfe\x00\xfd\x00\x00", "a field is KEY=VALUE"),
    ],
)
def test_a_bad_request_is_told_what_would_be_right_and_the_next_is_answered(
    path, dispatcher, request_, answer
):
    first, *others = talk(path, request_ + b"event=status\0\0").splitlines()
    assert first.decode().startswith(f"ERROR {answer}")
    assert len(first) < 400
    assert others == [b'{"event": "status"}', b"OK 1"]
    assert not dispatcher.submitted


@pytest.mark.parametrize(
    ("garbage", "answer"),
    [
        (b"\0", b"ERROR a request is empty; send event=NAME"),
        (b"\0" * 2**20, b"ERROR a request is empty"),
        (b"event=status\0\0\0event=status\0\0", b'{"event": "status"}\nOK 1\nERROR a request is e'),
        (b"x" * 2**20, b"ERROR a request has more than 65536 bytes before the empty field"),
        (b"event=resubmit\0path=/" + b"x" * 2**20 + b"\0\0", b"ERROR a request has more than"),
        (b"a=b\0" * 2**18, b"ERROR a request has more than 65536 bytes"),
        (b"event=resubmit\0path=/srv/a", b"ERROR the request is not ended; an empty field"),
        (b"event=resubmit\0path=/srv/a\0", b"ERROR the request is not ended"),
        (b"GET / HTTP/1.0\r\n\r\n", b"ERROR the request is not ended"),
    ],
)
def test_garbage_is_answered_once_and_nothing_after_it_is_taken(path, dispatcher, garbage, answer):
    found = talk(path, garbage)
    assert found.startswith(answer)
    assert found.count(b"ERROR") == 1
    assert not dispatcher.submitted
    assert alive(path)


def test_a_peer_that_leaves_in_the_middle_of_anything_is_forgotten(path):
    before = len(os.listdir("/proc/self/fd"))
    for data in (b"", b"\0", b"event=sta", b"event=status\0\0", b"event=queue\0\0" * 100):
        with connect(path) as connected:
            connected.sendall(data)
    assert alive(path)
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_silent_peers_and_half_requests_delay_nobody(path):
    with contextlib.ExitStack() as stack:
        for number in range(100):
            peer = stack.enter_context(connect(path))
            peer.sendall(b"event=resubmit\0path=/srv"[: number % 20])
        started = time.monotonic()
        assert alive(path)
        assert time.monotonic() - started < 0.5


def test_a_peer_that_never_reads_is_not_read_from_and_delays_nobody(path):
    with connect(path) as greedy:
        greedy.settimeout(0.3)
        with pytest.raises(TimeoutError):
            greedy.sendall(b"event=nonsense\0\0" * 1_000_000)
        assert alive(path)


def test_when_all_places_are_taken_the_oldest_idle_peer_makes_room(tmp_path, dispatcher):
    path = str(tmp_path / "socket")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    dispatcher.at_once = False
    # Half of them are for peers; pytest has some open by now.
    places = 32 + len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2 * places, limits[1]))
        try:
            stack.enter_context(listening(path, dispatcher))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        busy = stack.enter_context(connect(path))
        busy.sendall(b"event=resubmit\0path=/a\0\0")
        eventually(lambda: dispatcher.submitted)
        idle = [stack.enter_context(connect(path)) for _ in range(places)]
        assert alive(path)
        assert idle[0].recv(1) == b""
        dispatcher.submitted[0][1](Answer(Outcome.OK, "late"))
        assert busy.recv(100) == b"OK late\n"
        idle[-1].sendall(b"event=status\0\0")
        assert idle[-1].recv(100).startswith(b'{"event"')


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    with ours, theirs:
        yield Connection(ours, now=0.0), theirs


def test_half_a_request_and_silence_is_told_so_and_closed(pair):
    connection, peer = pair
    peer.sendall(b"event=sta")
    connection.receive(10.0)
    peer.sendall(b"tu")
    connection.receive(10.0 + IDLE - 1)
    assert list(connection.requests(10.0)) == []
    connection.expire(10.0 + IDLE)
    assert not connection.finished(10.0 + IDLE)
    connection.expire(11.0 + IDLE)
    connection.send(11.0 + IDLE)
    assert peer.recv(100) == b"ERROR the request was not ended within 30 seconds\n"
    assert peer.recv(100) == b""
    assert connection.finished(12.0 + IDLE + LINGER)


def test_a_peer_that_says_nothing_is_closed(pair):
    connection, _ = pair
    assert not connection.finished(IDLE)
    assert connection.finished(IDLE + 1)


def test_a_peer_that_is_owed_an_answer_is_not_closed(pair):
    connection, _ = pair
    connection.owe()
    assert not connection.finished(IDLE * 100)


def test_a_peer_that_does_not_read_its_answer_is_closed(pair):
    connection, _ = pair
    connection.owe().text = b"x" * 2**20
    for _ in range(20):
        connection.send(5.0)
    assert not connection.finished(5.0 + IDLE)
    assert connection.finished(6.0 + IDLE)


def test_answers_that_are_owed_are_sent_before_the_end(tmp_path, dispatcher):
    path = str(tmp_path / "socket")
    dispatcher.at_once = False
    with listening(path, dispatcher) as listener, connect(path) as connected:
        connected.sendall(b"event=resubmit\0path=/a\0\0")
        eventually(lambda: dispatcher.submitted)
        listener.stop()
        eventually(lambda: not Path(path).exists())
        connected.sendall(b"event=resubmit\0path=/b\0\0")
        dispatcher.submitted[0][1](Answer(Outcome.OK, "in time"))
        assert connected.recv(100) == b"OK in time\n"
        listener.join()
    assert len(dispatcher.submitted) == 1


def test_an_answer_after_the_end_goes_nowhere(tmp_path, dispatcher):
    path = str(tmp_path / "socket")
    dispatcher.at_once = False
    with listening(path, dispatcher), connect(path) as connected:
        connected.sendall(b"event=resubmit\0path=/a\0\0")
        eventually(lambda: dispatcher.submitted)
    threads = threading.active_count()
    dispatcher.submitted[0][1](Answer(Outcome.OK, "too late"))
    assert threading.active_count() == threads
    with pytest.raises(SocketUnavailable, match="No such file"):
        list(client.request(path, "status"))


def test_everyone_may_connect_whatever_the_umask(tmp_path, dispatcher):
    umask = os.umask(0o077)
    try:
        path = tmp_path / "a" / "b" / "socket"
        with listening(path, dispatcher):
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
            assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o755
        assert not path.exists()
    finally:
        os.umask(umask)


def test_what_a_killed_daemon_left_behind_is_replaced(tmp_path, dispatcher):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with listening(path, dispatcher):
        assert alive(str(path))


def test_the_socket_of_a_daemon_that_lives_is_left_alone(path, dispatcher):
    with pytest.raises(SocketUnavailable, match=r"another daemon answers on .*; stop it, or"):
        Listener(path, submit=dispatcher.submit, query=dispatcher.query, admins=()).start()
    assert alive(path)


@pytest.mark.parametrize(
    "make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("/dev/null")]
)
def test_what_is_not_a_socket_is_never_removed(tmp_path, dispatcher, make):
    path = tmp_path / "precious"
    make(path)
    with pytest.raises(SocketUnavailable, match="is not a socket; move it away"):
        Listener(str(path), submit=dispatcher.submit, query=dispatcher.query, admins=()).start()
    assert os.path.lexists(path)


def test_a_socket_that_cannot_be_made_says_so(tmp_path, dispatcher):
    (tmp_path / "file").touch()
    for path, reason in {
        tmp_path / "file" / "socket": "Not a directory",
        tmp_path / ("x" * 200): "path too long",
    }.items():
        with pytest.raises(SocketUnavailable, match=f"cannot make the socket .*{reason}"):
            Listener(str(path), submit=dispatcher.submit, query=dispatcher.query, admins=()).start()


def test_the_socket_of_a_successor_is_not_removed_at_the_end(tmp_path, dispatcher):
    path = tmp_path / "socket"
    with listening(path, dispatcher):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.exists()


def test_an_admin_who_does_not_exist_is_warned_about(tmp_path, dispatcher, caplog):
    with listening(tmp_path / "socket", dispatcher, admins=["no-such-user", "12345"]):
        assert alive(str(tmp_path / "socket"))
    assert "No user 'no-such-user' exists" in caplog.text
    assert "12345" not in caplog.text


def ask_as_nobody(path):
    """What the user nobody is answered, over a connection of its own process."""
    program = f"""if True:
        import socket
        peer = socket.socket(socket.AF_UNIX)
        peer.connect({path!r})
        peer.sendall(b"event=resubmit\\0path=/a\\0\\0event=status\\0\\0")
        peer.shutdown(socket.SHUT_WR)
        print(peer.makefile().read(), end="")
    """
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", program],
        user="nobody",
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        cwd="/",
    )
    return done.stdout


@pytest.mark.root
def test_who_is_no_admin_is_refused_and_who_is_one_is_served(dispatcher):
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = f"{directory}/socket"
        with listening(path, dispatcher, admins=["daemon"]):
            assert ask_as_nobody(path).splitlines() == [
                "ERROR only root and daemon may ask for resubmit",
                "ERROR only root and daemon may ask for status",
            ]
            assert not dispatcher.submitted
        with listening(path, dispatcher, admins=["nobody"]):
            assert ask_as_nobody(path).splitlines() == ["OK id-1", '{"event": "status"}', "OK 1"]


@pytest.mark.root
def test_who_has_more_to_say_at_each_answer_keeps_no_other_user_waiting():
    asked, go_on = threading.Event(), threading.Event()

    class Waiting(Dispatcher):
        def submit(self, notification, answer):
            asked.set()
            assert go_on.wait(10)
            super().submit(notification, answer)

    dispatcher = Waiting()
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = f"{directory}/socket"
        with listening(path, dispatcher), connect(path) as many:
            many.sendall(b"event=completed\0path=/many\0\0" * 1500)
            assert asked.wait(10)
            os.seteuid(65534)
            try:
                one = connect(path)
            finally:
                os.seteuid(0)
            with one:
                one.sendall(b"event=completed\0path=/one\0\0")
                go_on.set()
                assert one.recv(100).startswith(b"OK id-")
    paths = [notification.path for notification, _ in dispatcher.submitted]
    assert paths.index("/one") < 500

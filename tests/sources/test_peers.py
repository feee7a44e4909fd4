"""Who speaks on the socket, by the kernel's word, and in which session."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.users import ALICE, BOB, speak
from watchman.sources.socket.listener import Listener
from watchman.sources.socket.peers import Peer
from watchman.uploads.session import is_alive
from watchman.uploads.upload import Answer, Kind, Notification, Outcome


@pytest.mark.root
def test_what_is_said_on_the_socket_is_signed_with_who_says_it(public_path: Path) -> None:
    with listening(public_path) as heard:
        requests = b"".join(b"event=%s\0path=/a\0\0" % e for e in (b"started", b"completed"))
        assert speak(ALICE, public_path / "socket", requests) == ["OK id"] * 2
        eventually(lambda: len(heard) == 2)
    assert [notification.kind for notification in heard] == [Kind.STARTED, Kind.COMPLETED]
    assert {(n.uid, n.groups) for n in heard} == {(ALICE, frozenset({ALICE}))}
    # The session is who runs the peer: this very process.
    assert {n.session.partition(".")[0] for n in heard} == {str(os.getpid())}


@pytest.mark.root
def test_a_session_that_is_named_is_believed_of_the_same_user_alone(public_path: Path) -> None:
    with listening(public_path) as heard, subprocess.Popen(["sleep", "60"], user=ALICE) as process:
        try:
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            session = f"{process.pid}.{stat[19]}"
            assert is_alive(session)
            namespace = os.readlink("/proc/self/ns/pid")
            request = f"event=started\0path=/a\0session={namespace}.{session}\0\0".encode()
            for user in (ALICE, BOB):
                assert speak(user, public_path / "socket", request, orphan=True) == ["OK id"]
            eventually(lambda: len(heard) == 2)
        finally:
            process.kill()
    assert [(n.uid, n.session) for n in heard] == [(ALICE, session), (BOB, "")]


@contextlib.contextmanager
def listening(directory: Path) -> Iterator[list[Notification]]:
    heard: list[Notification] = []

    def submit(notification: Notification, answer: Callable[[Answer], None]) -> None:
        heard.append(notification)
        answer(Answer(Outcome.OK, "id"))

    path = str(directory / "socket")
    listener = Listener(path, submit=submit, query=lambda *_: [], admins=())
    listener.start()
    try:
        yield heard
    finally:
        listener.stop()
        listener.join()


def test_a_peer_knows_its_own_groups() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        peer = Peer.of(here)
    assert (peer.uid, peer.gid) == (os.geteuid(), os.getegid())
    assert peer.groups == frozenset(os.getgroups())

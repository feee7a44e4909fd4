"""Who may announce a file: who owns it or may write it, by its modes."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deadline import eventually
from watchman.sources.listener import Listener
from watchman.sources.peers import Peer
from watchman.upload import Answer, Kind, Notification, Outcome

ALICE, BOB, STAFF = 12345, 12346, 12347


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def own(path: Path, *, uid: int = 0, gid: int = 0, mode: int = 0o644) -> Path:
    path.write_text("x")
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


@pytest.mark.root
@pytest.mark.parametrize(
    ("uid", "gid", "mode", "may"),
    [
        (ALICE, 0, 0o400, True),
        (BOB, 0, 0o644, False),
        (BOB, STAFF, 0o664, True),
        (BOB, STAFF, 0o646, False),  # its group's rights count, and those of others do not
        (BOB, 0, 0o646, True),
    ],
)
def test_the_modes_of_a_file_say_who_may_announce_it(
    public: Path, uid: int, gid: int, mode: int, may: bool
) -> None:
    file = own(public / "a.csv", uid=uid, gid=gid, mode=mode)
    for peer in (Peer(1, ALICE, STAFF), Peer(1, ALICE, 99, frozenset({STAFF}))):
        assert peer.may_write(str(file)) == may
    assert Peer(1, 0, 0).may_write(str(file)), "root"


@pytest.mark.root
def test_a_directory_says_who_may_start_a_file_in_it(public: Path) -> None:
    inner = public / "d"
    inner.mkdir(mode=0o755)
    os.chown(inner, ALICE, 0)
    for name, peer, may in (
        ("new.csv", Peer(1, ALICE, STAFF), True),
        ("new.csv", Peer(1, BOB, STAFF), False),
        ("none/new.csv", Peer(1, ALICE, STAFF), False),
    ):
        assert peer.may_write(str(inner / name), or_directory=True) == may


@pytest.mark.root
def test_a_symlink_to_ones_own_file_gives_no_right_to_anothers_name(public: Path) -> None:
    own(public / "mine.csv", uid=ALICE)
    link = public / "link.csv"
    link.symlink_to("mine.csv")
    assert not Peer(1, BOB, STAFF).may_write(str(link))


@pytest.mark.root
def test_a_stranger_is_refused_on_the_socket_and_the_owner_is_heard(public: Path) -> None:
    theirs, others = own(public / "theirs.csv", uid=65534), own(public / "others.csv", uid=ALICE)
    heard: list[Notification] = []

    def submit(notification: Notification, answer: object) -> None:
        heard.append(notification)
        assert callable(answer)
        answer(Answer(Outcome.OK, "id"))

    path = public / "socket"
    listener = Listener(str(path), submit=submit, query=lambda *_: [], admins=())
    listener.start()
    try:
        requests = "".join(
            f"event={event}\\0path={file}\\0\\0"
            for event in ("started", "completed", "failed")
            for file in (theirs, others)
        )
        program = (
            f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r});"
            f"s.sendall(b'{requests}'); s.shutdown(1); print(s.makefile().read(), end='')"
        )
        answers = subprocess.run(
            ["/usr/bin/python3", "-IS", "-c", program],
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
            cwd="/",
        ).stdout.splitlines()
    finally:
        listener.stop()
        listener.join()
    refused = "ERROR only who may write a file may announce it"
    assert answers == ["OK id", refused] * 3
    eventually(lambda: len(heard) == 3)
    assert [notification.kind for notification in heard] == [
        Kind.STARTED,
        Kind.COMPLETED,
        Kind.FAILED,
    ]
    assert {notification.path for notification in heard} == {str(theirs)}
    # The session is who runs the peer: this very process.
    assert {n.session.partition(".")[0] for n in heard} == {str(os.getpid())}


def test_a_peer_knows_its_own_groups() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        peer = Peer.of(here)
    assert (peer.uid, peer.gid) == (os.geteuid(), os.getegid())
    assert peer.groups == frozenset(os.getgroups())

"""The ways in which a transfer ends, each as what a client or a signal does in a scene.

A generator goes on when the daemon has been killed, and once more when it runs again.
"""

from __future__ import annotations

import contextlib
import ftplib
import io
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
import pytest

from tests.servers.proftpd import PASSWORD
from tests.support.deadline import eventually
from tests.support.scene import CONFIRM, Scene

#: What half a file holds, and how much that is.
CONTENT = b"x" * 1000
HALF = len(CONTENT)

#: Seconds after which ProFTPD ends a transfer that stands still.
STALLED = 12

#: Errors of a client whose server has had enough.
REFUSED = (ftplib.Error, EOFError, OSError)


def waits_for(s: Scene, **tasks: int) -> None:
    """Wait until there are this many tasks of each file."""
    expected = {f"{name}.csv": count for name, count in tasks.items()}
    eventually(lambda: s.sent() == expected, timeout=30)


def has_begun(s: Scene) -> bool:
    return any(file.stat().st_size for file in s.directory.iterdir())


def half(s: Scene, command: str = "STOR a.csv") -> tuple[ftplib.FTP, socket.socket]:
    """Send the first half of a file."""
    ftp = s.ftp()
    ftp.voidcmd("TYPE I")
    data = ftp.transfercmd(command)
    data.sendall(CONTENT)
    eventually(lambda: has_begun(s), timeout=30)
    return ftp, data


def reset(connection: socket.socket | ftplib.FTP) -> None:
    sock = connection.sock if isinstance(connection, ftplib.FTP) else connection
    assert sock is not None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hang_up(ftp: ftplib.FTP) -> None:
    """Hear what the server says of the transfer, if anything, and go."""
    with contextlib.suppress(*REFUSED):
        ftp.voidresp()
    ftp.close()


def send_until_refused(data: socket.socket) -> None:
    """Send more; ProFTPD hears of what happens to its control connection only meanwhile."""

    def is_refused() -> bool:
        try:
            data.sendall(CONTENT)
        except OSError:
            return True
        return False

    eventually(is_refused, timeout=30)


def kill_session(s: Scene, sock: socket.socket | None) -> None:
    assert sock is not None
    os.kill(s.server.session(sock), signal.SIGKILL)


# FTP.


def stor(s: Scene) -> None:
    s.store("a.csv")


def empty(s: Scene) -> None:
    s.store("a.csv", "")


def ascii_mode(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storlines("STOR a.csv", io.BytesIO(b"1\n2\n"))


def overwrite(s: Scene) -> None:
    s.store("a.csv", "1")
    waits_for(s, a=1)
    s.store("a.csv", "12")


def overwrite_same_size_at_once(s: Scene) -> None:
    with s.ftp() as ftp:
        for content in (b"12345", b"54321"):
            ftp.storbinary("STOR a.csv", io.BytesIO(content))


def overwrite_same_size_later(s: Scene) -> None:
    s.store("a.csv", "12345")
    waits_for(s, a=1)
    time.sleep(1)
    s.store("a.csv", "54321")


def append(s: Scene) -> None:
    s.store("a.csv", "12345")
    waits_for(s, a=1)
    s.store("a.csv", "67890", "APPE")


def resume(s: Scene) -> None:
    s.store("a.csv", "12345")
    waits_for(s, a=1)
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"67890"), rest=5)


def resume_what_failed(s: Scene) -> None:
    reset_data(s)
    eventually(lambda: s.failed() or s.sent(), timeout=30)
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(CONTENT), rest=HALF)


def stou(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOU", io.BytesIO(b"12345"))


def stou_reset(s: Scene) -> None:
    ftp, data = half(s, "STOU")
    reset(data)
    hang_up(ftp)


def stou_killed(s: Scene) -> None:
    killed(s, "STOU")


def reset_data(s: Scene, command: str = "STOR a.csv") -> None:
    ftp, data = half(s, command)
    reset(data)
    hang_up(ftp)


def overtaken(s: Scene) -> None:
    first, first_data = half(s)
    second, second_data = half(s)
    second_data.sendall(CONTENT)
    first_data.close()
    assert first.voidresp().startswith("226")
    second_data.sendall(CONTENT)
    reset(second_data)
    hang_up(second)
    first.close()


def reset_append(s: Scene) -> None:
    reset_data(s, "APPE a.csv")


def reset_over_good_file(s: Scene) -> None:
    s.store("a.csv")
    waits_for(s, a=1)
    reset_data(s)


def abort(s: Scene) -> None:
    ftp, data = half(s)
    ftp.putline("ABOR")
    send_until_refused(data)
    hang_up(ftp)
    data.close()


def control_closed(s: Scene) -> None:
    ftp, data = half(s)
    ftp.close()
    send_until_refused(data)
    data.close()


def control_reset(s: Scene) -> None:
    ftp, data = half(s)
    reset(ftp)
    send_until_refused(data)
    reset(data)


def stall(s: Scene) -> None:
    ftp, data = half(s)
    hang_up(ftp)
    data.close()


def slow(s: Scene) -> None:
    """Pause for longer than anything waits but for the transfer's end."""
    ftp, data = half(s)
    time.sleep(CONFIRM + 1.5)
    assert (s.sent(), s.failed()) == ({}, {})
    data.sendall(CONTENT)
    data.close()
    ftp.voidresp()
    ftp.close()


def vanish(s: Scene) -> None:
    ftp, data = half(s)
    data.close()
    # Until ProFTPD has answered: if both connections end at once, it may hear first that the client
    # is gone, and then the transfer has failed.
    assert ftp.sock is not None
    select.select([ftp.sock], [], [], 30)
    ftp.close()


def killed(s: Scene, command: str = "STOR a.csv") -> None:
    ftp, data = half(s, command)
    kill_session(s, ftp.sock)
    data.close()
    ftp.close()


def denied(s: Scene) -> None:
    s.store("a.csv")
    waits_for(s, a=1)
    deny(s.directory / "a.csv")
    with s.ftp() as ftp, pytest.raises(ftplib.error_perm):
        ftp.storbinary("STOR a.csv", io.BytesIO(b"1"))


def deny(file: Path) -> None:
    os.chown(file, 0, 0)
    file.chmod(0o444)


def no_permission(s: Scene) -> None:
    deny(s.directory)
    s.directory.chmod(0o555)
    with s.ftp() as ftp, pytest.raises(ftplib.error_perm):
        ftp.storbinary("STOR a.csv", io.BytesIO(b"1"))


def no_directory(s: Scene) -> None:
    with s.ftp() as ftp, pytest.raises(ftplib.error_perm):
        ftp.storbinary("STOR none/a.csv", io.BytesIO(b"1"))


def too_much(s: Scene) -> None:
    """More than MaxStoreFileSize, or than there is room for."""
    with contextlib.suppress(*REFUSED), s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"x" * 1_000_000))


def rename_excluded(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv.part", io.BytesIO(b"12345"))
        ftp.rename("a.csv.part", "a.csv")


def rename_unmatched(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.dat", io.BytesIO(b"12345"))
        ftp.rename("a.dat", "a.csv")


def rename_matched(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        waits_for(s, a=1)
        ftp.rename("a.csv", "b.csv")


def rename_matched_at_once(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        ftp.rename("a.csv", "b.csv")


def rename_over(s: Scene) -> None:
    s.store("a.csv", "1")
    waits_for(s, a=1)
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv.part", io.BytesIO(b"12"))
        ftp.rename("a.csv.part", "a.csv")


def mfmt_at_once(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        ftp.sendcmd("MFMT 20200101000000 a.csv")


def mfmt_late(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        waits_for(s, a=1)
        ftp.sendcmd("MFMT 20200101000000 a.csv")


def site_copy(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        ftp.sendcmd("SITE CPFR a.csv")
        ftp.sendcmd("SITE CPTO b.csv")


def dele(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        ftp.delete("a.csv")


def delete_and_store_again(s: Scene) -> None:
    """Most filesystems give the new file the inode of the old one."""
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        waits_for(s, a=1)
        ftp.delete("a.csv")
        ftp.storbinary("STOR a.csv", io.BytesIO(b"54321"))


def hidden_killed(s: Scene) -> None:
    killed(s)
    assert os.listdir(s.directory) == [".in.a.csv."]


# FTPS.


def ftps(s: Scene) -> None:
    url = f"ftp://{s.user}:{PASSWORD}@127.0.0.1:{s.server.port}/{s.name}/a.csv"
    subprocess.run(
        ["curl", "-sS", "--ssl-reqd", "-k", "-T", "-", url], input=b"12345", check=True, timeout=30
    )


def ftps_killed(s: Scene) -> None:
    """By lftp; a killed curl leaves ProFTPD with a clean end, which nobody can tell."""
    settings = "set ftp:ssl-force yes; set ftp:ssl-protect-data yes; set ssl:verify-certificate no"
    login = f"open -u {s.user},{PASSWORD} ftp://127.0.0.1:{s.server.port}; cd {s.name}"
    put = f"set net:limit-rate 0:50000; put {big(s)} -o a.csv"
    killed_client(s, ["lftp", "-c", f"{settings}; {login}; {put}"])


def big(s: Scene) -> Path:
    """A file that takes a client with a limit longer than anybody waits."""
    file = s.tmp / f"big.{s.name.replace('/', '.')}"
    file.write_bytes(b"x" * 2_000_000)
    return file


def killed_client(s: Scene, command: list[str], number: int = signal.SIGKILL) -> None:
    """Signal a client, and the programs that it has started, in the midst of its upload."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as client:
        eventually(lambda: has_begun(s), timeout=30)
        os.killpg(client.pid, number)


# SFTP and scp.


@dataclass
class Sftp:
    """A client that does as it is told: opens several files, takes any name, breaks off."""

    client: paramiko.SFTPClient
    sock: socket.socket
    #: Those that nobody refers to are closed by paramiko.
    files: list[paramiko.SFTPFile] = field(default_factory=list)

    def begin(self, name: str = "a.csv") -> paramiko.SFTPFile:
        """Write the first half of a file, and leave it open."""
        self.files.append(self.client.open(name, "w"))
        self.files[-1].write(CONTENT)
        self.files[-1].flush()
        return self.files[-1]


@contextlib.contextmanager
def sftp(s: Scene) -> Iterator[Sftp]:
    sock = socket.create_connection(("127.0.0.1", s.server.sftp_port), timeout=30)
    transport = paramiko.Transport(sock)
    key = paramiko.RSAKey.from_private_key_file(str(s.server.user_key))
    try:
        transport.connect(username=s.user, pkey=key)
        client = paramiko.SFTPClient.from_transport(transport)
        assert client is not None
        client.chdir(s.name)
        yield Sftp(client, sock)
    finally:
        transport.close()


def batch(s: Scene, *commands: str) -> None:
    done = s.server.sftp("\n".join([f"cd {s.name}", *commands, ""]), s.user)
    assert done.returncode == 0, done.stderr


def source(s: Scene) -> Path:
    """A file of five bytes and some age."""
    file = s.tmp / f"source.{s.name.replace('/', '.')}"
    file.write_text("12345")
    os.utime(file, (1_600_000_000, 1_600_000_000))
    return file


def sftp_put(s: Scene) -> None:
    batch(s, f"put {source(s)} a.csv")


def sftp_put_twice_with_times(s: Scene) -> None:
    for number in (1, 2):
        batch(s, f"put -p {source(s)} a.csv")
        if number == 1:
            waits_for(s, a=1)


def sftp_put_again_later_with_times(s: Scene) -> None:
    batch(s, f"put -p {source(s)} a.csv")
    waits_for(s, a=1)
    time.sleep(CONFIRM + 0.5)
    batch(s, f"put -p {source(s)} a.csv")


def sftp_rename_matched(s: Scene) -> None:
    batch(s, f"put {source(s)} a.csv")
    waits_for(s, a=1)
    batch(s, "rename a.csv b.csv")


def sftp_rename_unmatched(s: Scene) -> None:
    batch(s, f"put {source(s)} a.dat", "rename a.dat a.csv")


def sftp_rename_excluded(s: Scene) -> None:
    batch(s, f"put {source(s)} a.csv.part", "rename a.csv.part a.csv")


def sftp_rename_over(s: Scene) -> None:
    batch(s, f"put {source(s)} a.csv")
    waits_for(s, a=1)
    with sftp(s) as session:
        with session.client.open("a.csv.part", "w") as file:
            file.write(b"12")
        session.client.posix_rename("a.csv.part", "a.csv")


def sftp_denied(s: Scene) -> None:
    batch(s, f"put {source(s)} a.csv")
    waits_for(s, a=1)
    deny(s.directory / "a.csv")
    with sftp(s) as session, pytest.raises(PermissionError):
        session.client.open("a.csv", "w")


def sftp_killed(s: Scene, number: int = signal.SIGKILL) -> None:
    """What sftp has started is ssh, whose socket the kernel closes in order."""
    command = [*s.server.openssh("sftp"), "-l", "500", "-b", "-", f"{s.user}@127.0.0.1"]
    script = f'printf "%s\\n" "cd {s.name}" "put {big(s)} a.csv" | "$@"'
    killed_client(s, ["sh", "-c", script, "sh", *command], number)


def sftp_interrupted(s: Scene) -> None:
    """By ^C: OpenSSH's sftp then says that it is done with the file, as it does of a whole one."""
    sftp_killed(s, signal.SIGINT)


def sftp_reset(s: Scene) -> None:
    with sftp(s) as session:
        session.begin()
        reset(session.sock)


def sftp_left_open(s: Scene) -> None:
    """The client says goodbye, but not that it is done with the file."""
    with sftp(s) as session:
        session.begin()


def sftp_session_killed(s: Scene) -> None:
    with sftp(s) as session:
        session.begin()
        kill_session(s, session.sock)


def interleaved(s: Scene) -> None:
    with sftp(s) as session:
        a, b = session.begin("a.csv"), session.begin("b.csv")
        for file in (a, b, a):
            file.write(CONTENT)
            file.flush()
        a.close()
        b.close()


def interleaved_reset(s: Scene) -> None:
    """One is complete before that."""
    with sftp(s) as session:
        session.begin("a.csv")
        session.begin("b.csv")
        session.begin("c.csv").close()
        reset(session.sock)


def interleaved_killed(s: Scene) -> None:
    with sftp(s) as session:
        session.begin("a.csv")
        session.begin("b.csv")
        kill_session(s, session.sock)


def read_while_written(s: Scene) -> None:
    with sftp(s) as session:
        with session.client.open("a.dat", "w") as other:
            other.write(b"1")
        file = session.begin()
        with session.client.open("a.dat") as other:
            other.read()
        file.close()


def scp(s: Scene, *options: str) -> None:
    command = [*s.server.openssh("scp"), *options, str(source(s))]
    subprocess.run([*command, f"{s.user}@127.0.0.1:{s.name}/a.csv"], check=True, timeout=60)


def legacy_scp(s: Scene) -> None:
    scp(s, "-O", "-p")


def scp_killed(s: Scene, *options: str) -> None:
    command = [*s.server.openssh("scp"), "-l", "500", *options, str(big(s))]
    killed_client(s, [*command, f"{s.user}@127.0.0.1:{s.name}/a.csv"])


def legacy_scp_killed(s: Scene) -> None:
    scp_killed(s, "-O")


# Names.

#: latin-1 goes over the wire as it is: the last but one is no UTF-8.
ODD = ("a b.csv", "'\"`$(x).csv", "\xe9\xff.csv", "x" * 251 + ".csv")

#: mod_exec would expand them once more, so the shipped file has ProFTPD refuse them.
PERCENT = ("%u.csv", "%{x}.csv")

#: ProFTPD's log has them as they are; refused by the shipped file where there are hooks.
LINES = ("a\nb.csv", "\n.csv")


def odd_names(s: Scene) -> None:
    with s.ftp() as ftp:
        for name in ODD:
            ftp.storbinary(f"STOR {name}", io.BytesIO(b"12345"))


def percent_names(s: Scene) -> None:
    with s.ftp() as ftp:
        for name in PERCENT:
            with refusal(s, ftplib.error_perm):
                ftp.storbinary(f"STOR {name}", io.BytesIO(b"12345"))


def refusal(s: Scene, error: type[Exception]) -> contextlib.AbstractContextManager[object]:
    """PathDenyFilter is among the hooks."""
    return contextlib.nullcontext() if s.mode == "log" else pytest.raises(error)


def names_with_newlines(s: Scene) -> None:
    with sftp(s) as session:
        for name in LINES:
            with refusal(s, PermissionError), session.client.open(name, "w") as file:
                file.write(b"12345")


def forged(s: Scene) -> None:
    """The path of an upload holds a line that says of another file that it is complete."""
    victim = s.directory / "a.csv"
    ftp, data = half(s, "STOR a.csv")
    line = f"x\na-guess|{int(time.time())}|4711|STOR|226|success|{HALF}|sftp|127.0.0.1|alice|"
    with sftp(s) as session, refusal(s, PermissionError):
        for part in (line, *victim.parts[1:-1]):
            session.client.mkdir(part)
            session.client.chdir(part)
        with session.client.open("a.csv", "w") as file:
            file.write(b"12345")
    reset(data)
    hang_up(ftp)


# Over a kill -9 of the daemon, in its midst or while it is down.


def killed_while_down(s: Scene) -> Generator[None]:
    ftp, data = half(s)
    yield
    kill_session(s, ftp.sock)
    data.close()
    ftp.close()
    yield


def reset_while_down(s: Scene) -> Generator[None]:
    ftp, data = half(s)
    yield
    reset(data)
    hang_up(ftp)
    yield


def completed_while_down(s: Scene) -> Generator[None]:
    ftp, data = half(s)
    yield
    data.sendall(CONTENT)
    data.close()
    ftp.voidresp()
    ftp.close()
    yield


def killed_afterwards(s: Scene) -> Generator[None]:
    ftp, data = half(s)
    yield
    yield
    kill_session(s, ftp.sock)
    data.close()
    ftp.close()


def completed_afterwards(s: Scene) -> Generator[None]:
    ftp, data = half(s)
    yield
    yield
    data.sendall(CONTENT)
    data.close()
    ftp.voidresp()
    ftp.close()


def begun_while_down(s: Scene) -> Generator[None]:
    """Nobody has told of the start, and others are told of before it is reset."""
    yield
    ftp, data = half(s)
    yield
    s.store("b.csv")
    eventually(lambda: s.sent().get("b.csv"), timeout=30)
    reset(data)
    hang_up(ftp)

"""What a real ProFTPD with the shipped watchman.conf tells, through the shipped hook."""

import contextlib
import ftplib
import io
import os
import signal
import socket
import ssl
import statistics
import subprocess
import time

import pytest

from tests.servers.proftpd import PASSWORD, SHIPPED, UID, USER
from tests.support.deadline import eventually
from tests.support.needs import PATH, need
from tests.support.recorder import Recorder

#: Seconds that an FTP client may wait for a hook.
LIMIT = 0.2

#: Who and whence, as all hooks but `ended` say.
CLIENT = {"user": USER, "client": "127.0.0.1"}


@pytest.fixture
def home(public_path):
    return public_path / "home"


@pytest.fixture
def daemon(public_path):
    with Recorder(public_path / "watchman.sock") as recorder:
        yield recorder


@pytest.fixture
def connect():
    """Logs in as an FTP client, by default without TLS."""
    clients = []

    def connect(server, client=None):
        client = client or ftplib.FTP()
        clients.append(client)
        client.connect("127.0.0.1", server.port, timeout=10)
        client.login(USER, PASSWORD)
        return client

    yield connect
    for client in clients:
        client.close()


def content(size=1000):
    return io.BytesIO(b"x" * size)


def begin(client, name):
    """An upload of which the server has got something, and its data connection."""
    data = client.transfercmd(f"STOR {name}")
    data.sendall(b"x" * 1000)
    return data


def story(daemon, *events):
    """The fields of what was told, once it is as much as `events`."""
    eventually(lambda: len(daemon.heard) >= len(events))
    assert daemon.events == list(events)
    return [
        {key: value for key, value in heard.fields.items() if key != "event"}
        for heard in daemon.heard
    ]


# Good uploads.


@pytest.mark.parametrize("size", [0, 1000, 200_000])
def test_an_upload_is_started_and_completed(start_proftpd, daemon, connect, home, size):
    client = connect(start_proftpd())
    client.storbinary("STOR a.csv", content(size))
    # No waiting: the client hears of it only when the hooks have ended.
    file = CLIENT | {"path": f"{home}/a.csv"}
    assert story(daemon, "started", "completed") == [file, file]
    assert (home / "a.csv").stat().st_size == size


def test_the_file_is_complete_when_it_is_said_to_be(start_proftpd, public_path, home, connect):
    sizes = []

    class Looking(Recorder):
        def _answer(self, peer):
            sizes.append([file.stat().st_size for file in home.iterdir()])
            super()._answer(peer)

    with Looking(public_path / "watchman.sock"):
        client = connect(start_proftpd())
        client.storbinary("STOR a.csv", content(10))
        client.storbinary("STOR a.csv", content(100_000))
    assert sizes == [[], [10], [10], [100_000]]


def test_hooks_run_as_the_user_below_the_session(start_proftpd, daemon, connect):
    server = start_proftpd()
    client = connect(server)
    session = server.session(client.sock)
    client.storbinary("STOR a.csv", content())
    client.quit()
    story(daemon, "started", "completed", "ended")
    assert {(heard.uid, heard.parent) for heard in daemon.heard} == {(UID, session)}


@pytest.mark.root
def test_each_session_tells_for_itself(start_proftpd, daemon, connect):
    server = start_proftpd()
    clients = [connect(server), connect(server)]
    sessions = [server.session(client.sock) for client in clients]
    for client in clients:
        client.storbinary("STOR a.csv", content())
    story(daemon, *["started", "completed"] * 2)
    assert sessions[0] != sessions[1]
    assert [heard.parent for heard in daemon.heard] == [sessions[0]] * 2 + [sessions[1]] * 2


def test_an_append_is_an_upload(start_proftpd, daemon, connect, home):
    client = connect(start_proftpd())
    client.storbinary("STOR a.csv", content())
    client.storbinary("APPE a.csv", content())
    file = CLIENT | {"path": f"{home}/a.csv"}
    assert story(daemon, "started", "completed", "started", "completed") == [file] * 4


def test_an_upload_without_a_name_gets_it_when_it_is_complete(start_proftpd, daemon, connect, home):
    client = connect(start_proftpd())
    client.storbinary("STOU", content())
    [name] = os.listdir(home)
    assert story(daemon, "started", "completed") == [CLIENT, CLIENT | {"path": f"{home}/{name}"}]


def test_a_rename_says_both_names(start_proftpd, daemon, connect, home):
    client = connect(start_proftpd())
    client.storbinary("STOR a.part", content())
    client.rename("a.part", "a b.csv")
    names = {"from": f"{home}/a.part", "path": f"{home}/a b.csv"}
    assert story(daemon, "started", "completed", "renamed")[2] == CLIENT | names


def test_a_rename_of_a_directory_is_told_and_one_that_is_refused_is_not(
    start_proftpd, daemon, connect, home
):
    client = connect(start_proftpd())
    client.mkd("a")
    client.rename("a", "b")
    with pytest.raises(ftplib.error_perm):
        client.rename("b", "missing/c")
    names = {"from": f"{home}/a", "path": f"{home}/b"}
    assert story(daemon, "renamed") == [CLIENT | names]


@pytest.mark.parametrize(
    "name", ["a b.csv", "'\"$(x) `y`\\;.csv", "=a.csv", "é.csv", "\xff\x80.csv"]
)
def test_names_arrive_as_they_are(start_proftpd, daemon, connect, home, name):
    """ftplib sends what is in latin-1: the last name is no UTF-8."""
    client = ftplib.FTP(encoding="utf-8" if "é" in name else "latin-1")
    connect(start_proftpd(directives="UseEncoding off"), client)
    client.storbinary(f"STOR {name}", content())
    path = os.fsencode(home) + b"/" + name.encode(client.encoding)
    assert os.path.exists(path)
    assert os.fsencode(story(daemon, "started", "completed")[1]["path"]) == path


def test_a_final_name_is_said_where_a_hidden_one_is_written(start_proftpd, daemon, connect, home):
    client = connect(start_proftpd(hidden_stores=True))
    data = begin(client, "a.csv")
    eventually(lambda: os.listdir(home) == [".in.a.csv."])
    data.close()
    client.voidresp()
    file = CLIENT | {"path": f"{home}/a.csv"}
    assert story(daemon, "started", "completed") == [file, file]


# Uploads that fail.


def test_an_upload_that_is_reset_has_failed(start_proftpd, daemon, connect, home):
    client = connect(start_proftpd())
    data = begin(client, "a.csv")
    eventually((home / "a.csv").exists)
    data.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    data.close()
    with pytest.raises(ftplib.error_temp, match="426"):
        client.voidresp()
    file = CLIENT | {"path": f"{home}/a.csv"}
    assert story(daemon, "started", "failed") == [file, file]


def test_an_upload_that_is_aborted_while_data_flows_has_failed(
    start_proftpd, daemon, connect, home
):
    """ProFTPD looks for ABOR between two reads of data, and for nothing else while it waits."""
    client = connect(start_proftpd())
    data = begin(client, "a.csv")
    client.putcmd("ABOR")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:
            data.sendall(b"x" * 100_000)
    data.close()
    with pytest.raises(ftplib.error_temp, match="426"):
        client.voidresp()
    file = CLIENT | {"path": f"{home}/a.csv"}
    assert story(daemon, "started", "failed") == [file, file]


def test_an_upload_that_stalls_has_failed(start_proftpd, daemon, connect, home):
    """And the session with it: its end is told twice, first by ExecOnEvent."""
    client = connect(start_proftpd(timeout_stalled=2))
    with begin(client, "a.csv"):
        with pytest.raises(EOFError):
            client.voidresp()
        told = story(daemon, "started", "ended", "failed", "ended")
    file = CLIENT | {"path": f"{home}/a.csv"}
    assert told == [file, {"user": USER}, file, {"user": USER}]


def test_an_upload_that_never_begins_to_send_ends_with_its_session(
    start_proftpd, daemon, connect, home
):
    client = connect(start_proftpd(directives="TimeoutNoTransfer 1"))
    client.makepasv()
    client.putcmd("STOR a.csv")
    with pytest.raises(ftplib.error_temp, match="421"):
        client.voidresp()
    assert story(daemon, "started", "ended")[1] == {"user": USER}


def test_an_upload_that_is_too_large_has_failed(start_proftpd, daemon, connect, home):
    client = connect(start_proftpd(max_store_file_size="10 Kb"))
    with pytest.raises((ftplib.error_perm, OSError)):
        client.storbinary("STOR a.csv", content(1_000_000))
    file = CLIENT | {"path": f"{home}/a.csv"}
    assert story(daemon, "started", "failed") == [file, file]


def test_an_upload_that_is_denied_has_failed_without_a_name(start_proftpd, daemon, connect, home):
    client = connect(start_proftpd())
    with pytest.raises(ftplib.error_perm, match="550"):
        client.storbinary("STOR missing/a.csv", content())
    path = {"path": f"{home}/missing/a.csv"}
    assert story(daemon, "started", "failed") == [CLIENT | path, CLIENT]


@pytest.mark.parametrize("name", ["a%u.csv", "a%{x}.csv", "a\x01.csv"])
def test_names_that_could_be_mistaken_are_refused(start_proftpd, daemon, connect, home, name):
    client = connect(start_proftpd())
    with pytest.raises(ftplib.error_perm, match="Forbidden"):
        client.storbinary(f"STOR {name}", content())
    assert story(daemon, "started", "failed")[1] == CLIENT
    assert os.listdir(home) == []


def test_a_session_that_is_killed_tells_nothing(start_proftpd, daemon, connect, home):
    server = start_proftpd()
    client = connect(server)
    session = server.session(client.sock)
    with begin(client, "a.csv"):
        eventually((home / "a.csv").exists)
        os.kill(session, signal.SIGKILL)
        with pytest.raises((EOFError, OSError)):
            client.voidresp()
    eventually(lambda: not server.sessions())
    assert daemon.events == ["started"]


def test_a_visitor_who_does_not_log_in_has_no_name(start_proftpd, daemon):
    server = start_proftpd()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as visitor:
        assert visitor.recv(100).startswith(b"220")
    assert story(daemon, "ended") == [{}]


# Other ways in, and real clients.


@pytest.fixture
def trusting(public_path):
    """A TLS context that believes in the certificate of the first server of this test."""

    def trusting(server):
        return ssl.create_default_context(cafile=server.directory / "certificate.pem")

    return trusting


def test_an_upload_by_ftps_is_told_alike(start_proftpd, daemon, connect, home, trusting):
    need("openssl")
    server = start_proftpd(tls=True)
    client = ftplib.FTP_TLS(context=trusting(server))
    connect(server, client)
    client.prot_p()
    client.storbinary("STOR a.csv", content())
    file = CLIENT | {"path": f"{home}/a.csv"}
    assert story(daemon, "started", "completed") == [file, file]


def test_an_upload_by_ftps_that_is_cut_off_may_be_taken_for_complete(
    start_proftpd, daemon, connect, home, trusting
):
    """mod_tls does not insist on TLS's own end: curl, killed, is taken for one that is done.

    Others, as lftp, leave something unread behind, so that the kernel resets the connection and
    the upload has failed. With TLS 1.3 that is mostly so, and depends on time.
    """
    need("openssl")
    server = start_proftpd(tls=True)
    context = trusting(server)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = ftplib.FTP_TLS(context=context)
    connect(server, client)
    client.prot_p()
    data = begin(client, "a.csv")
    eventually((home / "a.csv").exists)
    os.close(data.detach())
    client.voidresp()
    assert story(daemon, "started", "completed")[1]["path"] == f"{home}/a.csv"


def test_uploads_and_renames_by_sftp_are_told_alike(start_proftpd, daemon, home, tmp_path):
    need("sftp", "ssh-keygen")
    server = start_proftpd(sftp=True)
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100_000)
    done = server.sftp(f'put {file} "a b.part"\nrename "a b.part" "a b.csv"\nput {file} c.csv\n')
    assert done.returncode == 0, done.stderr
    told = story(daemon, "started", "completed", "renamed", "started", "completed", "ended")
    first, renamed, last = (
        CLIENT | {"path": f"{home}/a b.part"},
        CLIENT | {"from": f"{home}/a b.part", "path": f"{home}/a b.csv"},
        CLIENT | {"path": f"{home}/c.csv"},
    )
    assert told == [first, first, renamed, last, last, {"user": USER}]
    assert {heard.uid for heard in daemon.heard} == {UID}


@pytest.mark.parametrize("name", ["a%u.csv", "a\nb.csv"])
def test_names_that_could_be_mistaken_are_refused_by_sftp(
    start_proftpd, daemon, home, tmp_path, name
):
    need("sftp", "ssh-keygen")
    server = start_proftpd(sftp=True)
    directory = tmp_path / "files"
    directory.mkdir()
    (directory / name).write_text("x")
    done = server.sftp(f"put {directory}/a*\n")
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert story(daemon, "started", "failed", "ended")[1] == CLIENT
    assert os.listdir(home) == []


@pytest.mark.parametrize("tls", [False, True])
def test_curl_uploads(start_proftpd, daemon, home, tmp_path, tls):
    need("curl", "openssl")
    server = start_proftpd(tls=tls)
    file = tmp_path / "a.csv"
    file.write_text("x")
    secure = ["--ssl-reqd", "--cacert", server.directory / "certificate.pem"] if tls else []
    url = f"ftp://{USER}:{PASSWORD}@127.0.0.1:{server.port}/"
    subprocess.run(["curl", "-sS", *secure, "-T", file, url], timeout=30, check=True)
    assert story(daemon, "started", "completed", "ended")[1]["path"] == f"{home}/a.csv"


def test_lftp_mirrors_in_parallel(start_proftpd, daemon, home, tmp_path):
    need("lftp")
    server = start_proftpd()
    for number in range(12):
        file = tmp_path / "tree" / str(number % 3) / f"{number}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(number))
    script = f"open -u {USER},{PASSWORD} 127.0.0.1:{server.port}; mirror -R -P 4 {tmp_path}/tree ."
    subprocess.run(
        ["lftp", "--norc", "-c", script],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        timeout=60,
        check=True,
    )
    eventually(lambda: not server.sessions())
    completed = [heard.fields["path"] for heard in daemon.heard if heard.event == "completed"]
    assert sorted(completed) == sorted(str(file) for file in home.rglob("*.csv"))
    assert len(completed) == 12


# Never in the way.


def uploads(client, count):
    """Seconds that each of some uploads took."""
    times = []
    for number in range(count):
        before = time.monotonic()
        client.storbinary(f"STOR {number}.csv", content())
        times.append(time.monotonic() - before)
    return times


def test_hooks_cost_no_more_than_their_processes(start_proftpd, daemon, connect):
    """ExecTimeout without its ExecOptions would cost 2 seconds for each."""
    assert statistics.median(uploads(connect(start_proftpd()), 10)) < LIMIT
    assert daemon.events == ["started", "completed"] * 10


def test_a_frozen_daemon_costs_an_upload_at_most_its_limit_per_hook(
    start_proftpd, public_path, connect, home
):
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(public_path / "watchman.sock"))
        (public_path / "watchman.sock").chmod(0o666)
        frozen.listen(100)
        times = uploads(connect(start_proftpd()), 5)
    without = uploads(connect(start_proftpd(hooks=False)), 5)
    assert LIMIT < min(times) < 2 * LIMIT + max(without)
    assert len(os.listdir(home)) == 5


def test_a_daemon_that_is_not_there_fails_no_upload(start_proftpd, connect, home):
    client = connect(start_proftpd())
    assert min(uploads(client, 5)) < LIMIT
    client.rename("0.csv", "renamed.csv")
    client.quit()
    assert len(os.listdir(home)) == 5


def test_a_hook_that_is_missing_fails_no_upload(start_proftpd, daemon, connect, home):
    server = start_proftpd()
    server.hook.unlink()
    uploads(connect(server), 1)
    assert (os.listdir(home), daemon.heard) == (["0.csv"], [])


@pytest.mark.root
def test_who_is_locked_into_a_directory_uploads_without_hooks(start_proftpd, daemon, connect, home):
    server = start_proftpd(chroot=True)
    client = connect(server)
    uploads(client, 1)
    client.quit()
    eventually(lambda: not server.sessions())
    assert (os.listdir(home), daemon.heard) == (["0.csv"], [])


def test_hooks_go_on_after_a_reload(start_proftpd, daemon, connect):
    server = start_proftpd()
    server.signal(signal.SIGHUP)
    eventually(lambda: "SIGHUP" in server.log)
    eventually(server.is_ready)
    uploads(connect(server), 1)
    assert daemon.events == ["started", "completed"]


@pytest.mark.root
def test_logrotate_takes_the_stanza_and_leaves_the_new_file_to_the_daemon(tmp_path):
    need("logrotate")
    # The stanza of the transfer log has a test of its own.
    shipped, _ = (SHIPPED / "watchman.logrotate").read_text().split("# ProFTPD's transfer log")
    assert shipped.count("/var/log/watchman/*.log\n") == shipped.count("su watchman watchman") == 1
    stanza = tmp_path / "stanza"
    stanza.write_text(
        shipped.replace("/var/log/watchman/", f"{tmp_path}/").replace(
            "su watchman watchman", "su root root"
        )
    )
    (tmp_path / "watchman.log").write_text("a line\n")
    done = subprocess.run(
        ["logrotate", "--force", "--state", tmp_path / "state", stanza],
        env={"PATH": PATH},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.glob("watchman.log*")] == ["watchman.log.1"]

"""README's steps for a server, word for word, on a bare Debian of its own."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import docutils.nodes
import pytest

from tests.project.test_docs import DOCS, README, parse
from tests.servers.bareserver import BareServer
from tests.support.checkout import copy
from tests.support.deadline import eventually
from tests.support.needs import need
from watchman import __version__

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

SECTION = "A small server"
CHECKOUT = "/usr/src/watchman"

#: Blocks that install packages, and so need a network.
PACKAGES = re.compile(r"apt-get|pip install")


def section() -> docutils.nodes.section:
    sections = parse(README).findall(docutils.nodes.section)
    [found] = [one for one in sections if one[0].astext() == SECTION]
    return found


def steps() -> list[str]:
    """What an operator types, block by block."""
    blocks = section().findall(docutils.nodes.literal_block)
    return [block.astext() for block in blocks if "sh" in block["classes"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareServer]:
    """With all steps done but those that look whether it works, and those after them."""
    need("debootstrap", "unshare", "nsenter", "ip")
    with BareServer(tmp_path_factory.mktemp("server")) as bare:
        bare.put(copy(tmp_path_factory.mktemp("clone")), CHECKOUT)
        directory = CHECKOUT
        for step in steps()[:-3]:
            bare.run(step, directory=directory, network=bool(PACKAGES.search(step)))
            # One shell for all of them.
            directory = ([directory, *re.findall(r"^cd (\S+)$", step, re.M)])[-1]
            if "apt-get" in step:
                # As an init does when they are installed, and at each boot.
                bare.run("service redis-server start; service supervisor start")
        yield bare


def test_the_steps_lead_to_a_task(server: BareServer) -> None:
    trial, look, clean = steps()[-3:]
    assert server.run("watchman --version") == f"watchman {__version__}\n"
    assert "RUNNING" in server.run("supervisorctl status watchman")
    assert "0 errors" in server.log
    # Pasted at once, as soon as the server is installed.
    pasted = server.run(f"{trial}\n{look}")
    before, _, seen = pasted.partition("healthy since ")
    assert "NOT HEALTHY" not in pasted
    assert re.search(r"^hook +[1-9]", seen, re.M)
    assert re.search(r"^log +[1-9]", seen, re.M)
    path = "/srv/ftp/trial/trial.csv"
    task = json.loads(before.splitlines()[-1])
    assert task["headers"]["task"] == "reports.import_table"
    assert task["headers"]["watchman"]["original"] == path
    assert task["headers"]["watchman"]["user"] == "trial"
    assert task["headers"]["id"] in seen.partition(path)[2]

    said = server.run(clean)
    assert task["headers"]["id"] in said
    assert server.run("redis-cli llen celery") == "0\n"
    server.run(f"test ! -e {path}; ! id trial")


def test_everything_is_as_private_as_it_is_meant(server: BareServer) -> None:
    def mode(path: str) -> str:
        return server.run(f"stat -c '%U:%G %a' {path}").strip()

    assert mode("/var/lib/watchman") == "watchman:watchman 700"
    assert mode("/etc/watchman/watchman.ini") == "root:watchman 640"
    assert mode("/etc/proftpd/watchman.conf") == "root:root 600"
    assert mode("/var/log/proftpd/watchman") == "root:watchman 750"
    assert mode("/run/watchman/watchman.sock") == "watchman:watchman 666"
    assert mode("/var/log/watchman/watchman.log") == "watchman:watchman 640"
    assert mode("/usr/lib/watchman/watchman-hook") == "root:root 755"
    # A command from somebody who is no admin.
    assert server.attempt("runuser -u nobody -- watchman status").returncode != 0


def test_directories_that_users_make_are_the_daemons_to_read(server: BareServer) -> None:
    server.run(
        """
        useradd --no-create-home --home-dir /srv/ftp/bob --shell /bin/sh bob
        echo bob:secret | chpasswd
        install -d -o bob -g watchman -m 2750 /srv/ftp/bob
        echo 1 >/root/a.csv
        curl -sS --user bob:secret --ftp-create-dirs -T /root/a.csv ftp://localhost/in/2026/a.csv
        """
    )
    path = "/srv/ftp/bob/in/2026/a.csv"
    story = eventually(lambda: (s := server.run("redis-cli lindex celery 0")) and path in s)
    assert story
    # Not those of others.
    assert server.attempt("runuser -u nobody -- ls /srv/ftp/bob").returncode != 0
    server.run("redis-cli lpop celery; userdel bob; rm -r /srv/ftp/bob")


def test_with_the_capability_leases_tell_of_every_writer(server: BareServer) -> None:
    blocks = parse(DOCS / "installing.rst").findall(docutils.nodes.literal_block)
    [command] = [text for block in blocks if "ambient-caps" in (text := block.astext())]
    file = "/etc/supervisor/conf.d/watchman.conf"
    lines = server.run(f"cat {file}").splitlines()
    kept = [line for line in lines if not line.startswith(("command=", "user="))]
    server.write(file, "\n".join([*kept, command, ""]))
    server.run("supervisorctl update")
    eventually(lambda: "pid" in server.run("supervisorctl status watchman || true"))
    pid = server.run("supervisorctl pid watchman").strip()
    status = eventually(
        lambda: (text := server.run(f"cat /proc/{pid}/status")) and "watchman" in text and text
    )
    # CAP_LEASE is bit 28, see linux/capability.h, and all that it has.
    assert re.search(r"^CapEff:\t0000000010000000$", status, re.M)
    uid = server.run("id -u watchman").strip()
    assert re.search(rf"^Uid:\t{uid}\t{uid}\t{uid}\t{uid}$", status, re.M)
    # Root's file, closed by one writer and held open by another: quiet, but not whole.
    server.run(
        """
        cd /srv/ftp
        umask 022
        sh -c 'exec 3>held.csv; echo 1 >held.csv; exec sleep 1000' >/dev/null 2>&1 &
        echo $! >/root/writer
        """
    )
    eventually(lambda: "it is being written" in server.run("watchman queue"))
    server.run("kill $(cat /root/writer)")
    eventually(lambda: "/srv/ftp/held.csv" in server.run("redis-cli lindex celery 0"), timeout=20)


def test_the_log_is_rotated_as_the_daemons_user(server: BareServer) -> None:
    """The stanza as installed; logrotate itself is no part of a bare Debian."""
    stanza = server.run("cat /etc/logrotate.d/watchman")
    assert "su watchman watchman" in stanza
    log = Path("/var/log/watchman/watchman.log")
    assert f"{log.parent}/*{log.suffix}" in stanza
    assert "Started watchman" in server.run(f"cat {log}")

"""The unit under a systemd of its own, with its sandbox, capabilities, credentials and watchdog."""

import re
import sys
from collections.abc import Iterator

import pytest

from tests.servers.booted import Booted
from tests.servers.brokers import ROOT
from tests.support.deadline import eventually
from tests.support.needs import need

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(300)]

UNIT = ROOT / "docs/share/systemd/watchman.service"

INI = """\
[watchman]
spool = /var/lib/watchman
log_file = /var/log/watchman/watchman.log
[broker:demo]
url_file = ${CREDENTIALS_DIRECTORY}/broker
[watch:ftp]
path = /srv/ftp
[move:archive]
source = /srv/ftp
destination = /srv/archive
[task:csv]
pattern = *.csv
broker = demo
task = tasks.csv
"""

#: As docs/installing.rst has it, and a watchdog that does not let a test wait.
DROPIN = """\
[Service]
LoadCredential=broker:/etc/watchman/credentials/broker
CapabilityBoundingSet=CAP_LEASE CAP_DAC_READ_SEARCH CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER
AmbientCapabilities=CAP_LEASE CAP_DAC_READ_SEARCH CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER
WatchdogSec=5
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    need("systemctl", "unshare", "nsenter", "ip")
    with Booted(tmp_path_factory.mktemp("booted")) as booted:
        booted.run("useradd --system --user-group --home-dir /var/lib/watchman watchman")
        booted.run("useradd --home-dir /srv/ftp/trial trial")
        booted.run("install -d -o watchman /srv/ftp /srv/archive /srv/broker")
        booted.run("mount -t tmpfs -o mode=755 archive /srv/archive")
        booted.write("/etc/watchman/credentials/broker", "filesystem:///srv/broker\n", 0o600)
        booted.write("/etc/watchman/watchman.ini", INI)
        booted.write("/etc/systemd/system/watchman.service", UNIT.read_text())
        booted.write("/etc/systemd/system/watchman.service.d/test.conf", DROPIN)
        booted.run("systemctl daemon-reload; systemctl start watchman")
        yield booted
        # Shown where a test fails.
        log = booted.attempt("cat /var/log/watchman/watchman.log; journalctl --no-pager -n 50")
        sys.stdout.write(log)


def pid(machine: Booted) -> str:
    return machine.run("systemctl show -p MainPID --value watchman").strip()


def test_it_moves_what_it_may_not_read_by_modes_and_sends_a_task(machine: Booted) -> None:
    assert "Healthy." in machine.run("systemctl show -p StatusText watchman")
    machine.run(
        """
        install -d -o trial -m 700 /srv/ftp/trial
        runuser -u trial -- sh -c 'umask 077; echo 1 >/srv/ftp/trial/a.csv'
        """
    )
    eventually(lambda: ".msg" in machine.run("ls /srv/broker"), timeout=20)
    assert "trial 600" in machine.run("stat -c '%U %a' /srv/archive/trial/a.csv")


def test_it_has_the_capabilities_and_nothing_more(machine: Booted) -> None:
    status = machine.run(f"cat /proc/{pid(machine)}/status")
    # CAP_CHOWN 0, CAP_DAC_OVERRIDE 1, CAP_DAC_READ_SEARCH 2, CAP_FOWNER 3, CAP_LEASE 28.
    assert re.search(r"^CapEff:\t000000001000000f$", status, re.M)
    assert re.search(r"^Seccomp:\t2$", status, re.M)


def test_a_reload_fails_where_the_ini_file_is_wrong(machine: Booted) -> None:
    before = pid(machine)
    machine.run("systemctl reload watchman")
    machine.write("/etc/watchman/watchman.ini", INI.replace("path", "pth"))
    assert "failed" in machine.attempt("systemctl reload watchman")
    machine.write("/etc/watchman/watchman.ini", INI)
    machine.run("systemctl reload watchman; systemctl is-active watchman")
    assert pid(machine) == before


def test_a_daemon_that_hangs_is_started_again(machine: Booted) -> None:
    before = pid(machine)
    machine.run(f"kill -STOP {before}")
    eventually(lambda: pid(machine) not in (before, "0"), timeout=60)
    eventually(lambda: "active" in machine.attempt("systemctl is-active watchman").split())
    assert "watchdog" in machine.run("journalctl --no-pager -u watchman")


def test_a_stop_ends_it_in_order(machine: Booted) -> None:
    machine.run("systemctl stop watchman")
    assert "Result=success" in machine.run("systemctl show -p Result watchman")
    assert "Stopped." in machine.run("tail -n 1 /var/log/watchman/watchman.log")

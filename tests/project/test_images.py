"""The images of docker/, built by buildah from what debootstrap makes, and what is in them."""

import io
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from ftplib import FTP
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.servers.bareserver import (
    CERTIFICATES,
    HANDED_ON,
    HANDED_OVER,
    HANDED_OVER_DIRECTORIES,
    OWN_CERTIFICATES,
    base,
)
from tests.servers.brokers import free_port
from tests.support.checkout import copy
from tests.support.deadline import eventually
from tests.support.needs import need
from watchman import __version__

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(1200)]

#: chroot(2) instead of a container, which many a CI cannot start.
ISOLATION = ["--isolation", "chroot", "--network", "host"]


class Images:
    """A store of images, thrown away in the end."""

    def __init__(self, directory: Path) -> None:
        self._store = ["--root", f"{directory}/root", "--runroot", f"{directory}/run"]

    def buildah(self, command: str, *arguments: str | Path, ok: bool = True) -> str:
        handed_on = {n: v for n, v in os.environ.items() if HANDED_ON.fullmatch(n)}
        done = subprocess.run(
            ["buildah", *self._store, command, *arguments],
            env={"PATH": os.environ["PATH"], "HOME": "/root", **handed_on},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not ok or done.returncode == 0, done.stdout
        return done.stdout.strip()

    def make_base(self, name: str) -> None:
        """This machine's Debian, with its ways to packages."""
        container = self.buildah("from", "scratch")
        with base() as directory:
            self.buildah("add", "-q", container, directory, "/")
        places = {file: os.path.realpath(file) for file in HANDED_OVER if os.path.isfile(file)}
        places |= {directory: directory for directory in HANDED_OVER_DIRECTORIES}
        if os.path.isfile(CERTIFICATES):
            places |= {CERTIFICATES: CERTIFICATES, OWN_CERTIFICATES: CERTIFICATES}
        for place, source in places.items():
            self.buildah("add", "-q", container, source, place)
        self.buildah("commit", "-q", container, name)
        self.buildah("rm", container)

    def run(
        self,
        image: str,
        script: str,
        *,
        ok: bool = True,
        volumes: Mapping[Path, str] = MappingProxyType({}),
    ) -> str:
        """Run a script in a container; `volumes` has its directories of this machine."""
        mounted = [f"--volume={directory}:{place}" for directory, place in volumes.items()]
        container = self.buildah("from", image)
        try:
            said = self.buildah(
                *("run", *ISOLATION, *mounted, container, "sh", "-c", f"exec 2>&1; {script}"), ok=ok
            )
        finally:
            self.buildah("rm", container)
        return said


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    need("buildah", "debootstrap")
    store = Images(tmp_path_factory.mktemp("images"))
    try:
        store.make_base("localhost/base")
        context = copy(tmp_path_factory.mktemp("context"))
        for target in ("watchman", "ftp"):
            store.buildah(
                *("build", *ISOLATION, "--format", "docker", "--layers"),
                *("--build-arg", "BASE=localhost/base", "--target", target),
                *("-t", f"localhost/{target}", "-f", context / "docker/Dockerfile", context),
            )
        yield store
    finally:
        store.buildah("rm", "--all", ok=False)
        store.buildah("rmi", "--all", "--force", ok=False)


def test_the_daemon_of_the_image_runs_as_its_user_and_its_health_is_told(images: Images) -> None:
    inspected = json.loads(images.buildah("inspect", "--type", "image", "localhost/watchman"))
    config = inspected["Docker"]["config"]
    assert config["User"] == "watchman"
    assert config["Cmd"] == ["watchman", "run"]
    assert config["Healthcheck"]["Test"] == ["CMD", "watchman", "status", "--quiet"]
    assert images.run("localhost/watchman", "watchman --version") == f"watchman {__version__}"
    # Nobody answers: that is not healthy.
    said = images.run("localhost/watchman", "watchman status --quiet; echo $?")
    assert said.splitlines()[-1] == "3"


def test_the_daemon_of_the_image_turns_a_touch_into_a_task(images: Images) -> None:
    """On the embedded broker, as no other is there; with the files of the image."""
    script = """
    umask 022
    cd /srv/ftp
    sed -e '/^transfer_log/d; /^token_file/d' \
        -e 's,^url = .*,url = filesystem:///tmp/broker,' \
        -e 's,confirm = 3s,confirm = 0,' /etc/watchman/watchman.ini >/tmp/watchman.ini
    export WATCHMAN_CONFIG=/tmp/watchman.ini
    watchman run &
    for _ in $(seq 100); do watchman status --quiet && break; sleep 0.2; done
    touch data.csv
    for _ in $(seq 100); do ls /tmp/broker/*.msg && break; sleep 0.2; done
    watchman explain /srv/ftp/data.csv
    kill $!
    wait
    """
    said = images.run("localhost/watchman", script, ok=False)
    assert ".celery.msg" in said, said
    assert "tasks.import_table" in said


def test_an_upload_to_the_ftp_image_becomes_a_task_of_the_other(
    images: Images, tmp_path: Path
) -> None:
    """On the volumes that the compose file gives them, and on the embedded broker."""
    volumes = {
        tmp_path / "uploads": "/srv/ftp",
        tmp_path / "transferlog": "/var/log/proftpd/watchman",
        tmp_path / "token": "/etc/watchman-token",
    }
    for directory in volumes:
        directory.mkdir()
    port = free_port()
    serve = f"""
    sed -i 's/^Port 21$/Port {port}/' /etc/proftpd/trial.conf
    FTP_PASSWORD=trial start-ftp &
    while [ ! -e /etc/watchman-token/over ]; do sleep 0.2; done
    kill $!
    wait
    """
    follow = """
    umask 022
    sed 's,^url = .*,url = filesystem:///tmp/broker,' /etc/watchman/watchman.ini >/tmp/watchman.ini
    export WATCHMAN_CONFIG=/tmp/watchman.ini
    watchman run &
    watchman status --quiet --wait 30 && touch /srv/ftp/.ready
    for _ in $(seq 300); do ls /tmp/broker/*.msg && break; sleep 0.2; done
    watchman explain /srv/ftp/trial/data.csv
    kill $!
    wait
    """
    with ThreadPoolExecutor() as threads:
        serving = threads.submit(images.run, "localhost/ftp", serve, ok=False, volumes=volumes)
        try:
            eventually(lambda: (tmp_path / "token/token").exists(), timeout=60)
            following = threads.submit(
                images.run, "localhost/watchman", follow, ok=False, volumes=volumes
            )
            eventually(lambda: (tmp_path / "uploads/.ready").exists(), timeout=60)
            with eventually(lambda: connected(port), timeout=60) as client:
                client.login("trial", "trial")
                client.storbinary("STOR data.csv", io.BytesIO(b"1"))
            said = following.result()
            (tmp_path / "token/over").touch()
        except BaseException as e:
            (tmp_path / "token/over").touch()
            e.add_note(serving.result())
            raise
    assert "by trial from 127.0.0.1 over ftp, 1 byte (log)" in said, said
    assert "tasks.import_table" in said


def connected(port: int) -> FTP | None:
    client = FTP()
    try:
        client.connect("127.0.0.1", port)
    except OSError:
        return None
    return client

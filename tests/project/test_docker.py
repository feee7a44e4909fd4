"""docker/: the files fit to each other and to the checkout. `make soak` builds the images."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.brokers import ROOT
from watchman.config import inifile
from watchman.config.settings import Settings

DOCKER = ROOT / "docker"
DOCKERFILE = DOCKER / "Dockerfile"

#: What is not in the base image is in a volume, with what another service has put there.
VOLUMES = {"/srv/ftp", "/var/log/proftpd/watchman", "/etc/watchman-token"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    mounted = {
        volume.partition(":")[0] for s in found["services"].values() for volume in s["volumes"]
    }
    assert mounted == set(found["volumes"])
    services: dict[str, Any] = found["services"]
    return services


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """The INI file of the image, read here, with a token."""
    token = tmp_path / "token"
    token.write_text("0a4a5ab3e3ce1e1c")
    token.chmod(0o640)
    monkeypatch.setenv("RABBITMQ_PASSWORD", "secret")
    ini = tmp_path / "watchman.ini"
    text = (DOCKER / "watchman.ini").read_text()
    assert "/etc/watchman-token/token\n" in text
    ini.write_text(text.replace("/etc/watchman-token/token\n", f"{token}\n"))
    return inifile.load(str(ini))


def stages() -> list[str]:
    return re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.M)


def test_what_is_copied_is_there() -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE.read_text(), re.M)
    assert len(copied) > 3
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert os.access(DOCKER / "start-ftp", os.X_OK)


def test_every_service_is_built_from_a_stage_or_has_an_image(services: dict[str, Any]) -> None:
    assert set(services) == {"ftp", "rabbitmq", "redis", "watchman", "worker", "worker-redis"}
    for name, service in services.items():
        if "build" in service:
            assert service["build"]["target"] in stages(), name
            assert (DOCKER / service["build"]["context"]).resolve() == ROOT
            assert ROOT / service["build"]["dockerfile"] == DOCKERFILE
        else:
            assert re.fullmatch(r"docker\.io/library/\w+:[\w-]+", service["image"]), name


def test_nothing_is_open_to_other_machines(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    passive = re.search(r"^PassivePorts (\d+) (\d+)$", (DOCKER / "proftpd.conf").read_text(), re.M)
    assert passive is not None
    assert f"127.0.0.1:{passive[1]}-{passive[2]}:{passive[1]}-{passive[2]}" in ports


def test_watchman_finds_what_the_others_have(services: dict[str, Any], settings: Settings) -> None:
    places = {volume.split(":")[1]: volume.split(":")[0] for volume in services["ftp"]["volumes"]}
    assert set(places) == VOLUMES
    for place, volume in places.items():
        assert any(v.startswith(f"{volume}:{place}") for v in services["watchman"]["volumes"])
    assert [watch.path for watch in settings.watches.values()] == ["/srv/ftp"]
    assert settings.proftpd.transfer_log == ("/var/log/proftpd/watchman/uploads.log",)
    urls = {name: broker.url for name, broker in settings.brokers.items()}
    assert urls["rabbitmq"] == "amqp://watchman:secret@rabbitmq:5672//"
    for name, worker in (("rabbitmq", "worker"), ("redis", "worker-redis")):
        theirs = services[worker]["environment"]["BROKER"]
        assert theirs.replace("${RABBITMQ_PASSWORD:-watchman}", "secret") == urls[name]


def test_the_workers_know_the_tasks(settings: Settings) -> None:
    known = re.findall(r"^@app\.task.*\ndef (\w+)\(", (DOCKER / "tasks.py").read_text(), re.M)
    assert {task.task for task in settings.tasks} == {f"tasks.{name}" for name in known}

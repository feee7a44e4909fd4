"""Fixtures: real brokers, workers and daemons; and which tests may be left out."""

import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.servers.brokers import CeleryWorker, RabbitServer, RedisServer
from tests.servers.daemon import Daemon
from tests.servers.proftpd import Options, ProftpdServer, public_directory
from tests.support.needs import need
from tests.support.nursery import Nursery, NurseryDaemon
from tests.support.publishing import Publishers

# Where the tests were begun in the background of a shell, it is ignored (POSIX, 2.11 of the shell),
# and all that they start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if any test was left out")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in _left_to_root(items):
        item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """After pytest's own summary, say what was left out."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    if count := len(_left_to_root(session.items)):
        reporter.write_line(f"{count} tests need root: run sudo make test")
    if session.config.option.no_skips and (skipped := reporter.stats.get("skipped")):
        reporter.write_line(f"{len(skipped)} tests were left out, and none may be.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _left_to_root(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    if os.geteuid() == 0:
        return []
    return [item for item in items if item.get_closest_marker("root")]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that all tests share: use queues of your own, and do not stop it."""
    need("redis-server")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """A RabbitMQ that all tests share: use queues of your own, and do not stop it."""
    need("rabbitmq-server", "epmd")
    with RabbitServer(tmp_path_factory.mktemp("rabbit")) as server:
        yield server


@pytest.fixture
def publish() -> Iterator[Publishers]:
    """Starts publishers on a broker's url: `publisher, uploads = publish(url)`."""
    publishers = Publishers()
    yield publishers
    publishers.stop()


@pytest.fixture
def celery_worker(tmp_path: Path) -> Iterator[Callable[..., CeleryWorker]]:
    """Starts a stock worker on a broker's url; arguments as those of CeleryWorker."""
    workers: list[CeleryWorker] = []

    def start(
        url: str,
        *,
        queues: Iterable[str] = ("celery",),
        tasks: Iterable[str] = ("tests.record",),
        settings: Mapping[str, Any] | None = None,
    ) -> CeleryWorker:
        directory = tmp_path / f"worker{len(workers)}"
        workers.append(CeleryWorker(directory, url, queues=queues, tasks=tasks, settings=settings))
        workers[-1].start()
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()
        print(worker.log)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as one:
        yield one


@pytest.fixture
def start_watchman(tmp_path: Path, nursery: Nursery) -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon on an INI text; it must stop in order, and never have shown a traceback.

    With a `prefix` that is `prefix python -m watchman run`; else one forked off a nursery.
    """
    daemons: list[Daemon] = []

    def start(
        ini: str, *, directory: Path = tmp_path, prefix: Sequence[str] = (), started: bool = True
    ) -> Daemon:
        daemons.append(
            Daemon(directory, ini, prefix=prefix)
            if prefix
            else NurseryDaemon(nursery, directory, ini)
        )
        if started:
            daemons[-1].start()
        return daemons[-1]

    yield start
    try:
        for daemon in daemons:
            daemon.stop()
            assert "Traceback" not in daemon.log
    finally:
        for daemon in daemons:
            daemon.kill()
            print(daemon.log)


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user can reach, and FTP users with it: `tmp_path` is ours alone."""
    with public_directory() as directory:
        yield directory


@pytest.fixture
def start_proftpd(public_path: Path) -> Iterator[Callable[..., ProftpdServer]]:
    """Starts a ProFTPD with the shipped hooks; keywords as the fields of Options.

    By default its user's home is `public_path / "home"`, and its hooks speak to
    `public_path / "watchman.sock"`.
    """
    need("proftpd")
    servers: list[ProftpdServer] = []

    def start(
        *, home: Path | None = None, socket: Path | None = None, **options: Any
    ) -> ProftpdServer:
        server = ProftpdServer(
            public_path / f"proftpd{len(servers)}",
            home=home or public_path / "home",
            socket=socket or public_path / "watchman.sock",
            options=Options(**options),
        )
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
        print(server.log)

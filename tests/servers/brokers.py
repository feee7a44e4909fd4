"""Real brokers and workers for the tests: Redis, RabbitMQ, a stock `celery worker`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.deadline import eventually

ROOT = Path(__file__).parents[2]

REDIS_SERVER = shutil.which("redis-server")

#: RabbitMQ's own scripts run as anyone; Debian's wrappers in /usr/sbin insist on their user.
RABBITMQ_SCRIPTS = next(iter(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin")), None)

#: Seconds that a server may take to answer; RabbitMQ needs about ten on a busy machine.
READY = 60.0


#: Where ports are taken from: below those that the kernel gives to clients, so that no connection
#: has one by the time its server starts. See ip_local_port_range in ip(7).
PORTS = range(10_000, 32_000)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    while True:
        with socket.socket() as sock, contextlib.suppress(OSError):
            port = random.choice(PORTS)
            sock.bind(("127.0.0.1", port))
            return port


class Server:
    """A process in a session of its own, with its output in a log file below `directory`."""

    #: Seconds that it has to end in order.
    patience = 10.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> str:
        return "\n".join(
            f"--- {path}\n{path.read_text(errors='replace')[-8000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def begin(self) -> None:
        """Start it, and do not wait until it answers."""
        assert self.process is None, "started twice"
        self.process = self.spawn(self.command(), "output")

    def start(self) -> None:
        """Return when the server answers; fail with its log when it does not."""
        self.begin()
        assert self.process is not None
        try:
            eventually(self.is_ready_or_dead, timeout=READY)
            assert self.process.poll() is None, "ended by itself"
        except AssertionError as e:
            self.kill()
            raise AssertionError(f"{self.command()[0]}: {e}\n{self.log}") from e

    def spawn(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_ready_or_dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None or self.is_ready()

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return clean_environment()

    def is_ready(self) -> bool:
        raise NotImplementedError

    def stop(self) -> None:
        """End it in order, by force when that takes too long; nothing happens without a process."""
        if self.process is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.patience)
            self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash; it may be started again."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers, from the return on."""
        self.signal(signal.SIGSTOP)
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def clean_environment() -> dict[str, str]:
    """Our environment without what would tell Celery of another broker, and what pytest says."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CELERY_", "RECORD_", "PYTEST_"))
    }


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def certify(directory: Path) -> Path:
    """Make `cert.pem`, which vouches for itself and for 127.0.0.1, with `key.pem` beside it."""
    request = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
        " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    )
    subprocess.run(request.split(), cwd=directory, capture_output=True, check=True)
    return directory / "cert.pem"


class RedisServer(Server):
    """A redis-server on a free port; `durable` makes it keep what it confirmed over a kill."""

    def __init__(self, directory: Path, *, durable: bool = False, tls: bool = False) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.durable = durable
        self.tls_port = free_port() if tls else 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        command = [REDIS_SERVER or "redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.directory), "--save", ""]
        if self.tls_port:
            command += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(certify(self.directory))]
            command += ["--tls-key-file", f"{self.directory}/key.pem"]
            command += ["--tls-ca-cert-file", f"{self.directory}/cert.pem"]
        if self.durable:
            command += ["--appendonly", "yes", "--appendfsync", "always"]
        return command

    def is_ready(self) -> bool:
        return self.ask("PING") == b"+PONG"

    def ask(self, *words: str) -> bytes:
        """The first line of the answer to one command, without redis-py; b'' if there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
                sock.sendall(" ".join(words).encode() + b"\r\n")
                return sock.makefile("rb").readline().rstrip()
        except OSError:
            return b""

    def length(self, queue: str = "celery") -> int:
        """How many messages wait in a queue of Celery's."""
        answer = self.ask("LLEN", queue)
        assert answer.startswith(b":"), answer
        return int(answer[1:])

    def task_ids(self, queue: str = "celery") -> list[str]:
        """The ids of the tasks that wait in a queue of Celery's, in the order of sending."""
        with redis.Redis(port=self.port) as connection:
            messages = connection.lrange(queue, 0, -1)
        return [json.loads(message)["headers"]["id"] for message in reversed(messages)]


class RabbitServer(Server):
    """A RabbitMQ node on free loopback ports with an epmd of its own; guest:guest, vhost /."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.tls_port = free_port()
        self.epmd_port = free_port()
        self.distribution_port = free_port()
        self.epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def scripts(self) -> Path:
        assert RABBITMQ_SCRIPTS is not None, "rabbitmq-server is not installed"
        return RABBITMQ_SCRIPTS

    def environment(self) -> dict[str, str]:
        directory = str(self.directory)
        return clean_environment() | {
            "HOME": directory,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_CONF_ENV_FILE": f"{directory}/env.conf",
            "RABBITMQ_CONFIG_FILE": f"{directory}/rabbitmq",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{directory}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{directory}/mnesia",
            "RABBITMQ_LOG_BASE": directory,
            "RABBITMQ_PID_FILE": f"{directory}/pid",
            # One scheduler: the machine is shared, and the node starts faster.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }

    def command(self) -> list[str]:
        return [str(self.scripts / "rabbitmq-server")]

    def start(self) -> None:
        (self.directory / "rabbitmq.conf").write_text(
            "loopback_users = none\nvm_memory_high_watermark.absolute = 1GB\n"
            "disk_free_limit.absolute = 1MB\n"
            f"listeners.ssl.default = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.certfile = {certify(self.directory)}\n"
            f"ssl_options.keyfile = {self.directory}/key.pem\n"
        )
        (self.directory / "enabled_plugins").write_text("[].\n")
        if self.epmd is None:
            # Started here, or the node would leave a daemon of its own behind.
            self.epmd = self.spawn(
                ["epmd", "-address", "127.0.0.1", "-port", str(self.epmd_port)], "epmd"
            )
            eventually(lambda: accepts(self.epmd_port))
        super().start()

    def is_ready(self) -> bool:
        """Whether it answers a protocol header; that its port is open says little."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
                sock.sendall(b"AMQP\x00\x00\x09\x01")
                return sock.recv(1) == b"\x01"
        except OSError:
            return False

    def stop(self) -> None:
        super().stop()
        if self.epmd is not None:
            self.epmd.kill()
            self.epmd.wait(10)
            self.epmd = None

    def ctl(self, *arguments: str) -> str:
        """What rabbitmqctl says; takes two seconds or more."""
        return subprocess.run(
            [str(self.scripts / "rabbitmqctl"), "-q", *arguments],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=READY,
            check=True,
        ).stdout


class CeleryWorker(Server):
    """A stock `celery worker` that writes down what it received from a broker.

    `settings` are Celery's, as `{"broker_transport_options": {...}}` for `filesystem://`.
    """

    #: An idle solo worker may sit in a read and not hear of a SIGTERM for long.
    patience = 2.0

    def __init__(
        self,
        directory: Path,
        url: str,
        *,
        queues: Iterable[str] = ("celery",),
        tasks: Iterable[str] = ("tests.record",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(directory)
        self.url = url
        self.queues = tuple(queues)
        self.tasks = tuple(tasks)
        self.settings = dict(settings or {})
        self.record = directory / "received.jsonl"

    def environment(self) -> dict[str, str]:
        return clean_environment() | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "RECORD_FILE": str(self.record),
            "RECORD_BROKER": self.url,
            "RECORD_TASKS": ",".join(self.tasks),
            "RECORD_SETTINGS": json.dumps(self.settings),
            # Root may run it; pickle is off by default.
            "C_FORCE_ROOT": "1",
        }

    def command(self) -> list[str]:
        name = f"{self.directory.name}-{time.time_ns()}@localhost"
        return [
            *(
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "celery",
                "-A",
                "tests.support.tasks",
                "worker",
            ),
            *("-P", "solo", "-l", "INFO", "-n", name, "-Q", ",".join(self.queues)),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]

    def is_ready(self) -> bool:
        return "ready." in (self.directory / "output.log").read_text(errors="replace")

    def received(self) -> list[dict[str, Any]]:
        """What has arrived so far, oldest first; a last line that is half written is left out."""
        try:
            lines = self.record.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for(self, count: int, timeout: float = 20.0) -> list[dict[str, Any]]:
        """At least `count` received tasks; fails with the worker's log."""
        try:
            eventually(lambda: len(self.received()) >= count, timeout=timeout)
        except AssertionError as e:
            raise AssertionError(
                f"{len(self.received())} of {count} tasks arrived.\n{self.log}"
            ) from e
        return self.received()

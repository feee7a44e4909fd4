"""`check --brokers` beside a publisher: it says of each task what sending makes of it."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu
import pytest

from tests.servers.brokers import ROOT, RabbitServer, RedisServer, certify, clean_environment
from tests.support.backlog import upload
from tests.support.deadline import eventually
from tests.support.needs import need
from tests.support.publishing import Publishers
from watchman.commands.check import brokers
from watchman.commands.check.findings import Finding
from watchman.config import inifile
from watchman.uploads.upload import State

INI = """\
[watchman]
spool = spool
[broker:main]
url = {url}
declare = {declare}
{celery}
[watch:ftp]
path = ftp
[task:csv]
pattern = *.csv
broker = main
task = tests.record
{options}
"""


@dataclass
class Case:
    """A task, and what is said of it: a refusal with `refused` in it, else `note`.

    `options` are the task's; None stands for a queue that bears the name of the case.
    """

    refused: str = ""
    note: str = "which takes it"
    user: str = "guest:guest"
    declare: bool = True
    options: dict[str, Any] | None = None
    celery: dict[str, Any] = field(default_factory=dict)


def checked(directory: Path, url: str, case: Case, options: dict[str, Any]) -> list[Finding]:
    """What `check --brokers` says of the broker and the task."""
    ini = directory / "watchman.ini"
    ini.write_text(
        INI.format(
            url=url,
            declare="yes" if case.declare else "no",
            celery="\n".join(f"{name} = {it}" for name, it in case.celery.items()),
            options="\n".join(f"{name} = {value}" for name, value in options.items()),
        )
    )
    return list(brokers.check(inifile.load(str(ini)), connect=True))


def compare(directory: Path, url: str, case: Case, queue: str, publish: Publishers) -> None:
    """Check a task, then send it, and see that what was said comes true."""
    options = {"queue": queue} if case.options is None else case.options
    broker, task = checked(directory, url, case, options)
    assert broker.level == "OK", broker.text
    if case.refused:
        assert task.level == "ERROR", task.text
        assert "which would not take it: " in task.text
        assert case.refused in task.text
    else:
        assert task.level == "OK", task.text
        assert task.text.endswith(case.note)
    _, uploads = publish(url, declare=case.declare, **case.celery)
    uploads.add(upload("a.csv", **options))
    eventually(lambda: uploads.ids(State.DEFERRED if case.refused else State.DONE))


def exchange(name: str, kind: str = "direct") -> kombu.Exchange:
    return kombu.Exchange(f"check-{name}", kind)


#: Queues that others have made.
DECLARED: dict[str, dict[str, Any]] = {
    "alike": {},
    "alike-not-ours": {},
    "other-priority": {"queue_arguments": {"x-max-priority": 10}},
    "other-length": {"queue_arguments": {"x-max-length": 7}},
    "not-durable": {"durable": False},
    "other-exchange": {"exchange": exchange("other-exchange", "fanout")},
    "bound": {"exchange": exchange("theirs"), "routing_key": "key"},
    "unreadable": {},
}

#: Tasks for RabbitMQ, each with a queue of its name.
RABBIT = {
    "alike": Case(),
    "missing": Case(note="first task makes exchange 'check-missing' and queue 'check-missing'"),
    "alike-not-ours": Case(declare=False, user="check-writer:secret"),
    "other-priority": Case("PRECONDITION_FAILED - inequivalent arg 'x-max-priority'"),
    "other-length": Case("describe the queue in task_queues as the broker has it, or set declare"),
    "not-durable": Case("PRECONDITION_FAILED - inequivalent arg 'durable'"),
    "other-exchange": Case("PRECONDITION_FAILED - inequivalent arg 'type'"),
    "no-such-kind": Case("PRECONDITION_FAILED", celery={"task_queue_max_priority": 300}),
    "may-not-make": Case("ACCESS_REFUSED", user="check-writer:secret"),
    "nobody-makes": Case("NOT_FOUND - no queue", declare=False),
    "unreadable": Case("Queue.bind: (403) ACCESS_REFUSED", user="check-blind:secret"),
    "unwritable": Case("Queue.bind: (403) ACCESS_REFUSED", user="check-reader:secret"),
    "bound": Case(
        note="; only a task can tell whether a queue is bound to it",
        options={"exchange": "check-theirs", "routing_key": "key"},
    ),
    "nowhere": Case(
        "NOT_FOUND - no exchange", options={"exchange": "check-nowhere", "routing_key": "key"}
    ),
}

#: What users may make, write to and read.
RIGHTS = {
    "writer": ("^$", ".*", "^$"),
    "reader": (".*", "^$", ".*"),
    "blind": (".*", ".*", "^$"),
}


@pytest.fixture(scope="module")
def rabbit(rabbit_server: RabbitServer) -> RabbitServer:
    """The RabbitMQ of all tests, with the queues and users that the cases need."""
    with kombu.Connection(rabbit_server.url) as connection:
        for name, how in DECLARED.items():
            entity = kombu.Queue(f"check-{name}", **({"exchange": exchange(name)} | how))
            entity.bind(connection.default_channel).declare()
    for user, rights in RIGHTS.items():
        rabbit_server.ctl("add_user", f"check-{user}", "secret")
        rabbit_server.ctl("set_permissions", f"check-{user}", *rights)
    return rabbit_server


@pytest.mark.parametrize("name", RABBIT)
def test_rabbitmq_does_with_a_task_what_check_says(
    name: str, rabbit: RabbitServer, tmp_path: Path, publish: Publishers
) -> None:
    case = RABBIT[name]
    url = rabbit.url.replace("guest:guest", case.user)
    compare(tmp_path, url, case, f"check-{name}", publish)


def test_check_leaves_nothing_in_rabbitmq(rabbit: RabbitServer, tmp_path: Path) -> None:
    there = rabbit.ctl("list_queues", "name", "messages"), rabbit.ctl("list_exchanges", "name")
    for name in ("alike", "missing"):
        case = Case(celery={"task_default_exchange": "check-new"})
        _, task = checked(tmp_path, rabbit.url, case, {"queue": f"check-{name}-yet"})
        assert "the first task makes" in task.text
    assert there == (
        rabbit.ctl("list_queues", "name", "messages"),
        rabbit.ctl("list_exchanges", "name"),
    )


def test_check_does_not_wait_for_a_rabbitmq_that_is_out_of_memory(
    rabbit: RabbitServer, tmp_path: Path
) -> None:
    rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        _, task = checked(tmp_path, rabbit.url, Case(), {"queue": "check-alike"})
    finally:
        rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1GB")
    assert task.level == "ERROR"
    assert "it is short of memory or disk" in task.text


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, which may be maltreated."""
    need("redis-server")
    with RedisServer(tmp_path / "redis") as server:
        yield server


#: All that a publisher needs where it declares, and where it does not.
DECLARING = "+ping +multi +exec +sadd +smembers +lpush +llen"
SENDING = "+ping +lpush"

#: What is done to Redis before, and a task for it with the queue `celery`.
REDIS = {
    "default": ("", Case()),
    "all-rights": (f"ACL SETUSER u on >p ~* {DECLARING}", Case(user="u:p")),
    "only-ours": (
        f"ACL SETUSER u on >p ~celery* ~_kombu.* {DECLARING}",
        Case(user="u:p", options={}),
    ),
    "sends-only": (
        f"ACL SETUSER u on >p ~* {SENDING}",
        Case(user="u:p", declare=False, note="for the user may not run MULTI"),
    ),
    "no-lpush": (
        f"ACL SETUSER u on >p ~* {DECLARING} -lpush",
        Case("no permissions to run the 'lpush' command", user="u:p"),
    ),
    "no-sadd": (f"ACL SETUSER u on >p ~* {DECLARING} -sadd", Case("'sadd'", user="u:p")),
    "no-multi": (f"ACL SETUSER u on >p ~* {DECLARING} -multi", Case("'multi'", user="u:p")),
    "no-exec": (f"ACL SETUSER u on >p ~* {DECLARING} -exec", Case("'exec'", user="u:p")),
    "other-keys": (
        f"ACL SETUSER u on >p ~_kombu.* ~other {DECLARING}",
        Case("o permissions to access", user="u:p"),
    ),
    "replica": ("REPLICAOF 127.0.0.1 1", Case("read only replica")),
    "out-of-memory": ("CONFIG SET maxmemory 1", Case("maxmemory")),
    "too-few-replicas": ("CONFIG SET min-replicas-to-write 1", Case("replicas")),
    "no-list": ("SET celery text", Case("WRONGTYPE: the key 'celery' is a string")),
    "no-set": ("SET _kombu.binding.celery text", Case("WRONGTYPE")),
    "unbound": (
        "SADD _kombu.binding.theirs x",
        Case("no queue is bound to", options={"exchange": "ours", "routing_key": "key"}),
    ),
}


@pytest.mark.parametrize("name", REDIS)
def test_redis_does_with_a_task_what_check_says(
    name: str, redis: RedisServer, tmp_path: Path, publish: Publishers
) -> None:
    make, case = REDIS[name]
    if make:
        assert redis.ask(*make.split())[:1] in (b"+", b":")
    user = "" if case.user == "guest:guest" else f"{case.user}@"
    there = redis.ask("DBSIZE")
    url = redis.url.replace("://", f"://{user}")
    options = {"queue": "celery"} if case.options is None else case.options
    checked(tmp_path, url, case, options)
    assert redis.ask("DBSIZE") == there
    compare(tmp_path, url, case, "celery", publish)


def test_a_topic_exchange_of_redis_leads_where_the_first_task_binds_it(
    redis: RedisServer, tmp_path: Path, publish: Publishers
) -> None:
    celery = {"task_default_exchange": "topics", "task_default_exchange_type": "topic"}
    celery |= {"task_default_routing_key": "tasks.#"}
    case = Case(celery=celery, options={"routing_key": "tasks.new"})
    compare(tmp_path, redis.url, case, "", publish)
    assert redis.length() == 1


@pytest.fixture
def tls(redis: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    need("openssl")
    with RedisServer(tmp_path / "tls", tls=True) as server:
        yield server


#: Settings for TLS in either library's spelling, as Celery's documentation gives them and not.
TLS = {
    "amqp": {"cert_reqs": "required", "ca_certs": "CERT"},
    "redis": {"ssl_cert_reqs": "required", "ssl_ca_certs": "CERT"},
    "constant": {"cert_reqs": "CERT_REQUIRED", "ca_certs": "CERT"},
    "number": {"ssl_cert_reqs": 2, "ssl_ca_certs": "CERT"},
    "none": {"cert_reqs": "none"},
}


@pytest.mark.parametrize("name", TLS)
def test_tls_is_asked_for_in_any_spelling(
    name: str, tls: RedisServer, rabbit: RabbitServer, tmp_path: Path, publish: Publishers
) -> None:
    for server, url in (
        (tls, f"rediss://127.0.0.1:{tls.tls_port}/0"),
        (rabbit, f"amqps://guest:guest@127.0.0.1:{rabbit.tls_port}//"),
    ):
        text = json.dumps(TLS[name]).replace('CERT"', f'{server.directory}/cert.pem"')
        ini = Case(celery={"broker_use_ssl": text}, note="")
        _, task = checked(tmp_path, url, ini, {"queue": "check-alike"})
        assert task.level == "OK", task.text
        _, uploads = publish(url, broker_use_ssl=json.loads(text))
        uploads.add(upload("a", queue="check-alike"))
        eventually(lambda uploads=uploads: uploads.ids(State.DONE))
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        if name != "none":
            foreign = text.replace(f"{server.directory}/cert.pem", str(certify(other)))
            [broker, *_] = checked(tmp_path, url, Case(celery={"broker_use_ssl": foreign}), {})
            assert broker.level == "ERROR"
            assert "certificate verify failed" in broker.text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"cert_reqs": "reqired"}, "cert_reqs = reqired: give one of required, optional, none"),
        ({"cert_reqs": 7}, "cert_reqs = 7: give one of required, optional, none"),
        ({"cert_reqs": True}, "cert_reqs = True: give one of required, optional, none"),
        ({"ca_cert": "x"}, "no option ca_cert; known are "),
        ({"ssl_version": "TLSv1_2"}, "JSON has no TLS versions"),
    ],
)
@pytest.mark.parametrize("url", ["amqps://h//", "rediss://h/0"])
def test_what_tls_does_not_know_is_refused_in_our_words(
    options: dict[str, Any], problem: str, url: str, tmp_path: Path
) -> None:
    if "ssl_version" in options and url.startswith("redis"):
        problem = "no option ssl_version; known are "
    ini = Case(celery={"broker_use_ssl": json.dumps(options)})
    broker, task = checked(tmp_path, url, ini, {})
    assert broker.level == task.level == "ERROR"
    assert broker.text.startswith("[broker:main] broker_use_ssl: ")
    assert problem in broker.text


def test_a_file_for_tls_that_is_not_there_is_named(tmp_path: Path) -> None:
    options = json.dumps({"ca_certs": f"{tmp_path}/missing.pem"})
    broker, _ = checked(tmp_path, "amqps://h//", Case(celery={"broker_use_ssl": options}), {})
    assert broker.level == "ERROR"
    assert broker.text.endswith(f"ca_certs = {tmp_path}/missing.pem: No such file or directory")


def test_the_embedded_brokers_directories_must_be_ours_to_read_and_write(tmp_path: Path) -> None:
    (tmp_path / "broker/control").mkdir(parents=True)
    url = f"filesystem://{tmp_path}/broker"
    [broker, _] = checked(tmp_path, url, Case(), {})
    assert broker.level == "OK"
    (tmp_path / "broker/control").rmdir()
    (tmp_path / "broker/control").touch()
    wrong = [one.text for one in checked(tmp_path, url, Case(), {}) if one.level == "ERROR"]
    assert wrong == [f"'{tmp_path}/broker/control' is not a directory"]


@pytest.mark.parametrize(
    ("command", "url", "package"),
    [
        (("run",), "redis://h/0", "redis"),
        (("run",), "sqs://", "sqs"),
        (("check",), "sentinel://h/0", "redis"),
        (("explain", "ftp/a.csv"), "rediss://h/0", "redis"),
    ],
)
def test_a_package_that_is_missing_is_said_with_what_to_install(
    command: tuple[str, ...], url: str, package: str, tmp_path: Path
) -> None:
    """With an environment's packages as they are, but redis; it never had what SQS needs."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(kombu.__file__).parent.parent.iterdir():
        if not entry.name.startswith("redis"):
            (packages / entry.name).symlink_to(entry)
    with contextlib.suppress(AssertionError):
        checked(tmp_path, url, Case(), {})
    done = subprocess.run(
        [sys.executable, "-S", "-m", "watchman", "-c", str(tmp_path / "watchman.ini"), *command],
        env=clean_environment() | {"PYTHONPATH": f"{ROOT}:{packages}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = done.stdout + done.stderr
    assert f"pip install 'kombu[{package}]'" in said
    assert "Traceback" not in said
    assert done.returncode == {"run": 2, "check": 1, "explain": 0}[command[0]]

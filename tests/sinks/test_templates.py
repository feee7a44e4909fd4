"""What is filled in is what Celery and kombu make: field by field, and on the wire."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

import celery.signals
import kombu
import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.servers.brokers import CeleryWorker, RabbitServer, RedisServer
from tests.support.backlog import upload
from tests.support.deadline import eventually
from tests.support.publishing import Publishers
from watchman.config.settings import BrokerSettings
from watchman.errors import TaskRefused
from watchman.sinks.publishing.celeryapp import make_app
from watchman.sinks.publishing.confirms import ConfirmingSender
from watchman.sinks.publishing.messages import Message, compose
from watchman.sinks.publishing.pushes import PushingSender
from watchman.sinks.publishing.sender import Sender
from watchman.sinks.publishing.templates import Composer
from watchman.uploads.upload import State, Upload

#: Seconds between what Celery made and what we did.
SOON = 5.0

#: Characters of names, also those of names that are no UTF-8.
names = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
        st.sampled_from("'\"\\%{}()[], \n"),
    ),
    max_size=60,
)

values = st.recursive(
    st.one_of(names, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()),
    lambda some: st.one_of(st.lists(some, max_size=3), st.dictionaries(names, some, max_size=3)),
    max_leaves=6,
)

#: Most are texts, and some are longer than what Celery shows of them.
arguments = st.one_of(
    st.lists(names, max_size=4), st.lists(values, max_size=4), st.lists(names.map(lambda n: n * 40))
)

options = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from(["own", "fanned", "topical", "quorum", "brief"]),
        "exchange": st.sampled_from(["ex", "topics"]),
        "routing_key": st.sampled_from(["key", "a.b"]),
        "priority": st.integers(0, 255),
        "expires": st.one_of(st.floats(0.001, 1e9), st.integers(1, 10**9)),
        "countdown": st.one_of(st.floats(0, 1e9), st.integers(0, 10**9)),
        "time_limit": st.floats(0.1, 1e6),
        "soft_time_limit": st.floats(0.1, 1e6),
    },
)

queues = [
    kombu.Queue("fanned", kombu.Exchange("fan", "fanout")),
    kombu.Queue("topical", kombu.Exchange("topics", "topic"), "a.#"),
    kombu.Queue("quorum", queue_arguments={"x-queue-type": "quorum"}),
    kombu.Queue("brief", expires=60, max_priority=10),
]

routes = st.sampled_from(
    [
        None,
        {"tests.*": {"queue": "routed", "priority": 3}},
        {"tests.record": "short", "other.*": {"exchange": "topics", "routing_key": "a.b"}},
        [[("tests.*", {"queue": "topical", "delivery_mode": 1, "serializer": "json"})]],
        {"tests.*": {"compression": "gzip"}, "other.*": {"serializer": "pickle"}},
        {"tests.*": {"correlation_id": "mine", "reply_to": "me", "message_id": "5"}},
        {"tests.*": {"expires": 5, "shadow": "x", "headers": {"a": 1}}},
    ]
)

celery_settings = st.fixed_dictionaries(
    {"task_routes": routes, "task_queues": st.sampled_from([None, queues])},
    optional={
        "task_default_queue": st.just("standard"),
        "task_default_exchange_type": st.sampled_from(["direct", "topic", "fanout"]),
        "task_default_delivery_mode": st.sampled_from([1, 2, "transient"]),
        "task_default_priority": st.integers(0, 9),
        "task_queue_max_priority": st.integers(1, 9),
        "task_serializer": st.sampled_from(["json", "pickle", "yaml", "none-such"]),
        "task_compression": st.sampled_from(["gzip", "bzip2"]),
        "task_protocol": st.sampled_from([1, 2]),
        "task_repr_maxlevels": st.integers(0, 3),
        "task_send_sent_event": st.booleans(),
        "task_publish_retry_policy": st.just({"max_retries": 7}),
        "enable_utc": st.booleans(),
        "timezone": st.sampled_from(["Europe/Berlin", "America/Lima"]),
    },
)


def app_of(url: str = "amqp://127.0.0.1:1", **celery: Any) -> Any:
    return make_app(BrokerSettings("test", url, celery))


def timeless(headers: dict[str, Any]) -> tuple[str, list[datetime]]:
    """Headers as text, for 1 is not 1.0, and the moments that they tell."""
    moments = [datetime.fromisoformat(headers[n]) for n in ("eta", "expires") if headers.get(n)]
    return json.dumps({**headers, "eta": None, "expires": None}, sort_keys=True), moments


def assert_same(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Headers are the same, but for the time that passed between the two."""
    (text, moments), (our_text, our_moments) = timeless(theirs), timeless(ours)
    assert our_text == text
    assert len(our_moments) == len(moments)
    for moment, our_moment in zip(moments, our_moments, strict=True):
        assert abs((our_moment - moment).total_seconds()) < SOON
        assert our_moment.utcoffset() == moment.utcoffset()


def fields(made: Message) -> tuple[Any, ...]:
    return made.body, made.route, made.route.queue, {**made.options, "headers": None}


@settings(max_examples=200, deadline=None)
@given(
    celery=celery_settings,
    task=st.sampled_from(["tests.record", "other.task"]),
    options=options,
    calls=st.lists(
        st.tuples(names, arguments, st.dictionaries(names, st.one_of(names, values))),
        min_size=2,
        max_size=4,
    ),
)
@example(
    {"task_routes": None}, "tests.record", {}, [("a", ["x" * 1022], {}), ("b", ["y" * 1021], {})]
)
@example({"task_routes": None}, "t", {"countdown": 0}, [("a", [], {}), ("b", ["%s"], {"a": "'"})])
def test_a_message_from_a_template_is_what_celery_makes(
    celery: dict[str, Any],
    task: str,
    options: dict[str, Any],
    calls: list[tuple[str, list[Any], dict[str, Any]]],
) -> None:
    app = app_of(**celery)
    composer = Composer(app)
    for name, args, kwargs in calls:
        one = upload(name, task=task, args=args, kwargs=kwargs, **options)
        try:
            made = compose(app, one)
        except TaskRefused as refused:
            with pytest.raises(TaskRefused, match=re.escape(str(refused))):
                composer.compose(one)
            continue
        filled = composer.compose(one)
        if filled.template is None:  # Celery has made it
            continue
        assert fields(filled) == fields(made)
        assert_same(made.options["headers"], filled.options["headers"])


@pytest.mark.parametrize(
    ("settings", "is_filled"),
    [
        ({}, True),
        ({"task_routes": {"tests.*": {"queue": "x"}}}, True),
        ({"task_compression": "gzip"}, True),
        ({"task_serializer": "pickle"}, False),
        ({"task_protocol": 1}, False),
        ({"task_routes": [lambda *_, **__: {"queue": "x"}]}, False),
    ],
)
def test_what_may_look_at_the_arguments_has_no_template(
    settings: dict[str, Any], is_filled: bool
) -> None:
    message = Composer(app_of(**settings)).compose(upload("a"))
    assert (message.template is not None) is is_filled


def test_a_router_that_looks_at_the_arguments_is_asked_for_each_upload() -> None:
    def route(name: str, args: list[Any], *_: Any, **__: Any) -> dict[str, Any]:
        return {"queue": f"queue-{args[0]}"}

    composer = Composer(app_of(task_routes=[route]))
    found = [composer.compose(upload(name, args=[name])).route.queue for name in ("a", "b")]
    assert found == ["queue-a", "queue-b"]


def test_who_listens_to_celerys_signals_hears_of_each_upload_from_then_on() -> None:
    composer = Composer(app_of())
    composer.compose(upload("before"))
    heard = []

    def hear(headers: dict[str, Any], **_: Any) -> None:
        heard.append(headers["id"])
        headers["heard"] = True

    celery.signals.before_task_publish.connect(hear)
    try:
        message = composer.compose(upload("a"))
    finally:
        celery.signals.before_task_publish.disconnect(hear)
    assert heard == ["id-a"]
    assert message.options["headers"]["heard"]
    assert composer.compose(upload("after")).template is not None


# On the wire.


@contextmanager
def sender_of(kind: type[Sender], app: Any) -> Iterator[Sender]:
    sender = kind(app, stopping=threading.Event(), blocked=lambda _: None)
    with closing(sender):
        yield sender


def send(kind: type[Sender], app: Any, uploads: list[Upload]) -> None:
    composer = Composer(app)
    with sender_of(kind, app) as sender:
        sent = [s for some in sender.send([composer.compose(u) for u in uploads]) for s in some]
    assert [(one.message.upload.id, one.state) for one in sent] == [
        (one.id, State.DONE) for one in uploads
    ]


def odd_uploads(**options: Any) -> list[Upload]:
    """The first of each kind is sent by kombu, the others are cut."""
    found = ["plain", "100%.csv", "%(id)s%s", "caf\udce9", "käse '\"\n", "x" * 3000]
    uploads = [upload(name, kwargs={"name": name}, **options) for name in found]
    return [one._replace(id=f"{one.id[:30]}-{n}", protocol="sftp") for n, one in enumerate(uploads)]


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "priority": ({"queue": "low", "priority": 7}, {}),
    "steps": (
        {"priority": 4},
        {"broker_transport_options": {"priority_steps": [0, 4, 8], "sep": ":"}},
    ),
    "prefix": ({}, {"broker_transport_options": {"global_keyprefix": "here-"}}),
    "no_base64": ({}, {"broker_transport_options": {"body_encoding": None}}),
    "times": ({"expires": 60.0, "countdown": 5.5, "time_limit": 3.0}, {}),
    "compression": ({}, {"task_compression": "gzip"}),
    "pickle": ({}, {"task_serializer": "pickle"}),
    "topic": ({"exchange": "topics", "routing_key": "a.b", "queue": "topical"}, {}),
    "expiring": ({"queue": "brief"}, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_redis_holds_what_kombu_would_have_put_there(name: str, redis_server: RedisServer) -> None:
    options, celery = KINDS[name]
    app = app_of(redis_server.url.replace("/0", "/9"), task_queues=queues, **celery)
    with redis.Redis(port=redis_server.port, db=9) as client:

        def kept(kind: type[Sender]) -> dict[bytes, Any]:
            client.flushdb()
            send(kind, app, odd_uploads(**options))
            return {
                key: client.lrange(key, 0, -1) if client.type(key) == b"list" else client.type(key)
                for key in client.scan_iter()
            }

        theirs, ours = kept(Sender), kept(PushingSender)
        client.flushdb()
    assert theirs.keys() == ours.keys()
    tags = set()
    for key in theirs:
        if not isinstance(theirs[key], list):
            assert theirs[key] == ours[key]
            continue
        for their, our in zip(
            map(json.loads, theirs[key]), map(json.loads, ours[key]), strict=True
        ):
            del their["properties"]["delivery_tag"]
            tags.add(our["properties"].pop("delivery_tag"))
            assert_same(their.pop("headers"), our.pop("headers"))
            assert our == their
    assert len(tags) == len(odd_uploads())


@pytest.mark.parametrize("name", KINDS)
def test_rabbitmq_is_sent_what_kombu_would_have_sent(
    name: str, rabbit_server: RabbitServer
) -> None:
    options, celery = KINDS[name]
    default = f"wire-{name}"
    mine = {"task_queues": queues, "task_default_queue": default, **celery}
    app = app_of(rabbit_server.url, **mine)
    queue = options.get("queue", default)

    def received(kind: type[Sender]) -> list[Any]:
        send(kind, app, odd_uploads(**options))
        found = []
        with kombu.Connection(rabbit_server.url) as connection:
            channel = connection.default_channel
            while message := channel.basic_get(queue, no_ack=True):
                found.append(message)
        return found

    theirs, ours = received(Sender), received(ConfirmingSender)
    assert len(theirs) == len(odd_uploads())
    for their, our in zip(theirs, ours, strict=True):
        assert_same(
            their.properties.pop("application_headers"), our.properties.pop("application_headers")
        )
        assert our.properties == their.properties
        assert our.body == their.body
        places = [[m.delivery_info[n] for n in ("exchange", "routing_key")] for m in (their, our)]
        assert places[0] == places[1]


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_stock_worker_runs_what_was_filled_in(
    scheme: str,
    redis_server: RedisServer,
    rabbit_server: RabbitServer,
    publish: Publishers,
    celery_worker: Callable[..., CeleryWorker],
) -> None:
    url = redis_server.url if scheme == "redis" else rabbit_server.url
    queue = f"filled-{scheme}"
    worker = celery_worker(url, queues=[queue])
    _, uploads = publish(url)
    sent = odd_uploads(queue=queue, expires=60.0, time_limit=9.0)
    uploads.add(*sent)
    received = worker.wait_for(len(sent))
    assert [one["id"] for one in received] == [one.id for one in sent]
    for one, task in zip(sent, received, strict=True):
        assert one.task is not None
        assert task["args"] == one.task.args
        assert task["kwargs"] == one.task.kwargs
        assert task["headers"]["expires"]
        assert task["headers"]["timelimit"] == [9.0, None]
        assert task["watchman"]["original"] == one.original
        assert task["watchman"]["protocol"] == "sftp"


def test_what_kombu_sends_and_what_is_pushed_to_one_queue_keep_their_order(
    redis_server: RedisServer, publish: Publishers
) -> None:
    routes = {"tests.packed": {"queue": "mixed", "compression": "gzip"}}
    _, uploads = publish(redis_server.url, task_routes=routes)
    for n in range(60):
        task = "tests.packed" if n % 7 in (3, 4) else "tests.record"
        uploads.add(
            upload(f"{n:02d}", task=task, **({} if "packed" in task else {"queue": "mixed"}))
        )
    eventually(lambda: uploads.unsettled == 0)
    assert redis_server.task_ids("mixed") == [f"id-{n:02d}" for n in range(60)]


def test_what_redis_refuses_of_what_is_pushed_together_has_nothing_else_sent_twice(
    redis_server: RedisServer, publish: Publishers
) -> None:
    good, bad = "pushed-well", "pushed-badly"
    _, uploads = publish(redis_server.url)
    uploads.add(*(upload(f"{queue}-first", queue=queue) for queue in (good, bad)))
    eventually(lambda: uploads.unsettled == 0)
    redis_server.ask("DEL", bad)
    redis_server.ask("SET", bad, "text")
    for n in range(40):
        uploads.add(upload(f"bad-{n}", queue=bad), upload(f"good-{n}", queue=good))
    eventually(lambda: len(uploads.ids(State.DONE)) == 42)
    assert redis_server.task_ids(good)[1:] == [f"id-good-{n}" for n in range(40)]
    assert "WRONGTYPE" in uploads.reasons(State.DEFERRED)["id-bad-0"]
    redis_server.ask("DEL", bad)
    eventually(lambda: uploads.unsettled == 0)
    assert redis_server.task_ids(bad) == [f"id-bad-{n}" for n in range(40)]

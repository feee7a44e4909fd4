"""The sender for Redis: many messages at once, with one LPUSH for each list."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kombu.utils.json import JSONEncoder

from watchman.sinks.publishing.messages import Message, Template
from watchman.sinks.publishing.sender import REFUSALS, Sender, Sent, explain
from watchman.uploads.upload import State

encode = JSONEncoder().encode


class PushingSender(Sender):
    """A connection to Redis.

    Messages that go straight to a queue are pushed by this class, with the same bytes as kombu
    would push. kombu sends all others. Redis takes or refuses an LPUSH as a whole, so the messages
    of one list share one result.
    """

    ANSWER = "taken"

    def _open(self, channel: Any) -> None:
        super()._open(channel)
        #: By list, messages that wait to be pushed, with their payload.
        self._lists: dict[str, list[tuple[Message, str]]] = {}
        # One for all pushes: each new one fills a table of some 300 answers' types.
        self._client = channel._create_client()

    def _to_be_cut(self, message: Message) -> Template | None:
        # kombu renews the time to live of a queue that expires with each message.
        expires = message.route.routing_key in self._channel._expires
        if message.route.exchange or expires or not self._producer.supports_batch_publish:
            return None
        return super()._to_be_cut(message)

    def _publish(self, message: Message) -> None:
        """Keep a message to be pushed with others, or have kombu send it."""
        cut = self._cuts.get(message.template)
        before = self._window if cut else [one for some in self._lists.values() for one, _ in some]
        if any(one.route == message.route for one in before):
            # Messages of one route may be sent in two ways, by kombu and by us. Neither may
            # overtake the other.
            self._flush()
        if cut is None:
            super()._publish(message)
            return
        try:
            payload = cut.payload(message)
        except REFUSALS as e:
            self._settled.append(Sent(message, State.FAILED, explain(e)))
        else:
            self._lists.setdefault(cut.name, []).append((message, payload))

    def _flush(self) -> None:
        lists, self._lists = self._lists, {}
        if lists:
            self._push(lists)
        super()._flush()

    def _push(self, lists: dict[str, list[tuple[Message, str]]]) -> None:
        """Push to all lists in one pipeline. Raises the first error that concerns the server."""
        pipeline = self._client.pipeline(transaction=False)
        for name, pushed in lists.items():
            pipeline.lpush(name, *(payload for _, payload in pushed))
        answers = pipeline.execute(raise_on_error=False)
        faults = []
        for pushed, answer in zip(lists.values(), answers, strict=True):
            if not isinstance(answer, Exception):
                self._settled += [Sent(message, State.DONE) for message, _ in pushed]
            elif self._is_about_route(answer):
                self._settled += [self._refuse(message, explain(answer)) for message, _ in pushed]
            else:
                faults.append(answer)
        if faults:
            raise faults[0]

    def _send_one(self, message: Message) -> Sent:
        sent = super()._send_one(message)
        if sent.state is State.DONE and (template := self._to_be_cut(message)):
            self._cuts[template] = _Cut(template, message, self._prepared, self._channel)
        return sent


class _Cut:
    """The text of a template's messages as kombu pushes them, cut where the messages differ."""

    def __init__(
        self,
        template: Template,
        message: Message,
        prepared: Callable[[Message], Any],
        channel: Any,
    ) -> None:
        self._channel, self._template = channel, template
        queue = message.route.routing_key
        name, id_, body = (uuid.uuid4().hex for _ in range(3))
        headers = {**template.shared(), name: name}
        options = {**message.options, "headers": headers, "correlation_id": id_}
        whole = prepared(replace(message, body=body.encode(), options=options))
        channel._inplace_augment_message(whole, "", queue)
        #: The Redis list: kombu has one for each queue and priority.
        self.name = channel._q_for_pri(queue, channel._get_message_priority(whole, reverse=False))
        self._text = encode(whole).replace("%", "%%")
        self._cut(f"{encode(name)}: {encode(name)}", "headers")
        self._cut(encode(id_), "id")
        self._cut(encode(whole["body"]), "body")
        # Letters and digits, which JSON has as they are.
        self._cut(whole["properties"]["delivery_tag"], "tag")

    def _cut(self, text: str, name: str) -> None:
        assert self._text.count(text) == 1
        self._text = self._text.replace(text, f"%({name})s")

    def payload(self, message: Message) -> str:
        channel = self._channel
        body, _ = channel.encode_body(message.body, channel.body_encoding)
        return self._text % {
            "headers": encode(self._template.own(message.options["headers"]))[1:-1],
            "id": encode(message.upload.id),
            "body": encode(body),
            "tag": channel._next_delivery_tag(),
        }

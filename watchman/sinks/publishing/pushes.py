"""Redis: windows of messages, pushed by one command for each list."""

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
    """A connection to Redis; pushes itself what goes straight to a queue, as kombu would push it.

    Of what is pushed together Redis takes, or refuses, each list as a whole.
    """

    def _open(self, channel: Any) -> None:
        super()._open(channel)
        #: What is to be pushed, by list.
        self._lists: dict[str, list[tuple[Message, str]]] = {}

    def _to_be_cut(self, message: Message) -> Template | None:
        # A queue that expires lives on with each message.
        expires = message.route.routing_key in self._channel._expires
        if message.route.exchange or expires or not self._producer.supports_batch_publish:
            return None
        return super()._to_be_cut(message)

    def _publish(self, message: Message) -> None:
        cut = self._cuts.get(message.template)
        before = self._window if cut else [one for some in self._lists.values() for one, _ in some]
        if any(one.route == message.route for one in before):
            # What kombu sends is not to overtake what is pushed, nor the other way round.
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
        with self._channel.conn_or_acquire() as client:
            pipeline = client.pipeline(transaction=False)
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
    """What kombu pushes for the messages of a template, cut where they differ."""

    def __init__(
        self,
        template: Template,
        message: Message,
        prepared: Callable[[Message], Any],
        channel: Any,
    ) -> None:
        self._channel, self._template = channel, template
        queue, mark = message.route.routing_key, uuid.uuid4().hex
        headers = {**template.shared(), mark: mark}
        options = {**message.options, "headers": headers, "correlation_id": mark}
        whole = prepared(replace(message, body=mark.encode(), options=options))
        channel._inplace_augment_message(whole, "", queue)
        #: The list of its queue and priority.
        self.name = channel._q_for_pri(queue, channel._get_message_priority(whole, reverse=False))
        self._text = encode(whole).replace("%", "%%")
        self._cut(f"{encode(mark)}: {encode(mark)}", "headers")
        self._cut(encode(mark), "id")
        self._cut(encode(whole["body"]), "body")
        self._cut(encode(whole["properties"]["delivery_tag"]), "tag")

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
            "tag": encode(channel._next_delivery_tag()),
        }

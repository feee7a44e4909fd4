"""Messages of many uploads, of which Celery makes one."""

from __future__ import annotations

import uuid
from dataclasses import replace
from numbers import Real
from typing import Any

from celery import signals
from celery.app.routes import MapRoute
from celery.utils.saferepr import saferepr
from celery.utils.time import add_seconds_to_datetime, maybe_make_aware
from kombu.utils.json import JSONEncoder

from watchman.sinks.publishing.messages import (
    Message,
    Template,
    compose,
    header_of,
    record,
    route_of,
)
from watchman.uploads.upload import Upload

#: Who hears one of these may change a message, or counts on being called for each.
HEARD = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)

encode = JSONEncoder().encode


class Composer:
    """Makes the messages of one app: from a template, as Celery would, in a tenth of the time.

    There is a template for each name and options of a task, and whatever else a message depends on
    is the app's settings. What looks at the arguments, as a router may, or what is no JSON, has
    none: Celery makes each of those.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._templates: dict[tuple[str, str], Template | None] = {}
        self._levels = app.conf.task_repr_maxlevels
        self._is_plain = app.conf.task_protocol == 2 and all(
            isinstance(router, MapRoute) for router in app.amqp.routes
        )

    def compose(self, upload: Upload) -> Message:
        """Make the message for an upload. Raises TaskRefused; connects to nothing."""
        task = upload.task
        assert task is not None
        if self._is_plain and not any(signal.receivers for signal in HEARD):
            try:
                # The text tells 1 from 1.0, which are equal.
                kind = task.name, repr(task.options)
                if kind not in self._templates:
                    self._templates[kind] = self._template(upload)
                template = self._templates[kind]
                if template is not None:
                    return self._fill(template, upload)
            except Exception:
                # Celery refuses it, too, and says why.
                return compose(self._app, upload)
        return compose(self._app, upload)

    def _template(self, upload: Upload) -> Template | None:
        """Return what Celery makes of another task of the same kind, if this one's is like it."""
        assert upload.task is not None
        other = replace(upload.task, args=["other"], kwargs={"another": "argument"})
        body, options = record(self._app, other, str(uuid.uuid4()), {})
        made = compose(self._app, upload)
        told = {"eta": other.options.get("countdown"), "expires": other.options.get("expires")}
        if options["serializer"] != "json":
            return None
        moments = {
            name: float(seconds)
            for name, seconds in told.items()
            if isinstance(seconds, Real) and options["headers"][name] is not None
        }
        options |= {name: made.options[name] for name in ("content_type", "content_encoding")}
        template = Template(route_of(options), options["headers"], options, body[2], moments)
        filled = self._fill(template, upload)
        return template if _timeless(filled, moments) == _timeless(made, moments) else None

    def _fill(self, template: Template, upload: Upload) -> Message:
        task = upload.task
        assert task is not None
        # As Celery's protocol has it, for a task without arguments.
        args = task.args or ()
        headers = {
            **template.headers,
            "id": upload.id,
            "root_id": upload.id,
            "argsrepr": self._shown(args, self._app.amqp.argsrepr_maxsize),
            "kwargsrepr": self._shown(task.kwargs, self._app.amqp.kwargsrepr_maxsize),
            "watchman": header_of(upload),
        }
        for name, seconds in template.moments.items():
            moment = add_seconds_to_datetime(self._app.now(), seconds)
            headers[name] = maybe_make_aware(moment, tz=self._app.timezone).isoformat()
        body = encode((args, task.kwargs, template.embedded)).encode()
        options = {**template.options, "headers": headers, "correlation_id": upload.id}
        return Message(upload, template.route, body, options, template)

    def _shown(self, arguments: Any, longest: int) -> str:
        """Return what `saferepr` does, at once where nothing is to be cut or nested."""
        if type(arguments) is list and all(type(one) is str for one in arguments):
            text = f"[{', '.join(map(_quoted, arguments))}]"
        elif type(arguments) is dict and all(type(one) is str for one in arguments.values()):
            items = (f"{_quoted(key)}: {_quoted(value)}" for key, value in arguments.items())
            text = f"{{{', '.join(items)}}}"
        else:
            text = ""
        if 0 < len(text) < longest:
            return text
        return str(saferepr(arguments, longest, maxlevels=self._levels))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def _timeless(message: Message, moments: Any) -> tuple[Any, ...]:
    """Return what of a message is the same whenever it is made."""
    headers = {**message.options["headers"], **dict.fromkeys(moments)}
    return message.body, message.route, {**message.options, "headers": headers}

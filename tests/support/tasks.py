"""The tasks module of the stock workers that tests start: writes down whatever it receives.

Settings come from the environment: RECORD_FILE, RECORD_BROKER (url), RECORD_TASKS (names) and
RECORD_SETTINGS (JSON of Celery settings).
"""

import json
import os
from typing import Any

from celery import Celery

app = Celery("recorder", broker=os.environ.get("RECORD_BROKER"), set_as_current=False)
app.conf.update(json.loads(os.environ.get("RECORD_SETTINGS", "{}")))


def record(task: Any, *args: Any, **kwargs: Any) -> None:
    """Append one JSON line to RECORD_FILE."""
    request = task.request
    line = {
        "task": task.name,
        "id": request.id,
        "args": args,
        "kwargs": kwargs,
        "watchman": request.headers.get("watchman") if request.headers else None,
        "headers": {
            name: request.get(name) for name in ("expires", "eta", "timelimit", "argsrepr", "lang")
        },
        "delivery": {
            name: (request.delivery_info or {}).get(name)
            for name in ("exchange", "routing_key", "priority")
        },
    }
    with open(os.environ["RECORD_FILE"], "a") as file:
        file.write(json.dumps(line, default=str) + "\n")


for name in os.environ.get("RECORD_TASKS", "tests.record").split(","):
    app.task(record, name=name, bind=True)

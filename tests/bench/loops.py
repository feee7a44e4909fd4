"""What one would write instead of watchman: a task for each file that is closed, and nothing kept.

`python -m tests.bench.loops LOOP URL DIRECTORY`. Each keeps one producer; none waits until a broker
confirms, none knows after a restart what it has missed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from celery import Celery

Send = Callable[[str], object]


def pyinotify(directory: str, send: Send) -> None:
    import pyinotify

    class Handler(pyinotify.ProcessEvent):
        def process_IN_CLOSE_WRITE(self, event: Any) -> None:  # noqa: N802
            send(event.pathname)

    manager = pyinotify.WatchManager()
    manager.add_watch(directory, pyinotify.IN_CLOSE_WRITE, rec=True, auto_add=True)
    pyinotify.Notifier(manager, Handler()).loop()


def watchdog(directory: str, send: Send) -> None:
    from watchdog.events import FileClosedEvent, FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    class Handler(FileSystemEventHandler):
        def on_closed(self, event: FileSystemEvent) -> None:
            send(str(event.src_path))

    observer = Observer()
    observer.schedule(Handler(), directory, recursive=True, event_filter=[FileClosedEvent])
    observer.start()
    observer.join()


def watchfiles(directory: str, send: Send) -> None:
    from watchfiles import Change, watch

    # It knows no close: a file that appears is taken for whole.
    for changes in watch(directory, debounce=50, step=10):
        for change, path in changes:
            if change is Change.added:
                send(path)


def inotifywait(directory: str, send: Send) -> None:
    command = ["inotifywait", "-m", "-r", "-q", "-e", "close_write", "--format", "%w%f", directory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            send(line.rstrip("\n"))


LOOPS = {f"{loop.__name__}": loop for loop in (pyinotify, watchdog, watchfiles, inotifywait)}


def main() -> None:
    name, url, directory = sys.argv[1:]
    app = Celery(broker=url)
    producer = app.amqp.Producer(app.connection_for_write())

    def send(path: str) -> None:
        app.send_task("tests.record", [path], producer=producer, ignore_result=True)

    LOOPS[name](directory, send)


if __name__ == "__main__":
    main()

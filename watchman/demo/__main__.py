"""Runs the daemon on `watchman.ini.example` and a worker, and shows a file become a task."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

INI = Path("watchman.ini.example")
INCOMING = Path("var/incoming")
BROKER = Path("var/broker")
EXAMPLE = INCOMING / "example.csv"

DAEMON = ("watchman", "-c", str(INI), "run")
WORKER = (
    *("celery", "--quiet", "-A", "watchman.demo.worker", "worker", "-P", "solo", "-l", "WARNING"),
    *("-n", "demo@localhost", "--without-gossip", "--without-mingle", "--without-heartbeat"),
)

#: Seconds that a step may take before we say that something is wrong.
PATIENCE = 30.0

#: Seconds that a child may take to end by itself. The daemon drains for 10.
STOPPING = 15.0


class Failed(Exception):
    """A child ended by itself, or something did not happen in time."""


class Child:
    """A process whose output goes into `lines`, line by line, and then None."""

    def __init__(
        self, name: str, command: Sequence[str], lines: "queue.SimpleQueue[tuple[str, str | None]]"
    ) -> None:
        # A session of its own: Ctrl-C reaches only the demo, which stops both children in order. If
        # the demo is killed, the kernel kills them too, and the next run finds the spool free.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        self.name = name
        self.lines = lines
        self.reader = threading.Thread(target=self._read, name=name, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put((self.name, line.rstrip()))
        self.lines.put((self.name, None))

    def stop(self) -> None:
        """End the process in order, or by force if that takes too long."""
        self.process.terminate()
        try:
            self.process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(1)


class Demo:
    """The daemon and the worker, and what they print."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.lines: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
        self.stopping = False

    def show(self) -> None:
        """Show how one file becomes a task, then whatever happens, until Ctrl-C."""
        for directory in (INCOMING, BROKER):
            directory.mkdir(parents=True, exist_ok=True)
        for name, command in (("daemon", DAEMON), ("worker", WORKER)):
            say(f"Starting the {name}: {' '.join(command)}")
            self.children.append(Child(name, command, self.lines))
        self.wait_for("daemon", "Started")
        say(f"Writing {EXAMPLE}")
        # Written under a hidden name and then renamed, so that nobody sees half of it.
        hidden = EXAMPLE.with_name(f".{EXAMPLE.name}")
        hidden.write_text(f"time,level\n{time.time():.0f},1.25\n")
        hidden.rename(EXAMPLE)
        self.wait_for("worker", str(EXAMPLE))
        watchman = os.path.relpath(Path(sys.executable).with_name("watchman"))
        say("\nThat was one upload, on its way from file to task. Try, in another terminal:")
        say(f"    cp FILE {INCOMING}/")
        say(f"    {watchman} -c {INI} status")
        say("Ctrl-C ends both.\n")
        self.wait_for(patience=None)

    def wait_for(self, who: str = "", what: str = "", patience: float | None = PATIENCE) -> None:
        """Print all lines until one of `who` contains `what`. Without `who`, print for ever."""
        deadline = time.monotonic() + patience if patience else None
        while True:
            left = max(0.0, deadline - time.monotonic()) if deadline else None
            try:
                name, line = self.lines.get(timeout=left)
            except queue.Empty:
                raise Failed(f"The {who} has not said {what!r} for {patience:.0f} s.") from None
            if line is None:
                raise Failed(f"The {name} ended by itself.")
            say(f"{name} | {line}")
            if name == who and what in line:
                return

    def interrupt(self, *_: object) -> None:
        # Only once: make passes on a signal that has reached us already.
        if not self.stopping:
            self.stopping = True
            raise KeyboardInterrupt

    def stop(self) -> None:
        """End both, the daemon first, and print what they still say."""
        self.stopping = True
        for child in self.children:
            child.stop()
        with contextlib.suppress(BrokenPipeError):
            while not self.lines.empty():
                name, line = self.lines.get()
                if line:
                    say(f"{name} | {line}")
            say("Stopped.")


def say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader of our output has gone, as in `make run | head`. Without this Python would try
        # to write again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def main() -> int:
    if not INI.exists():
        print(f"There is no {INI} here: start the demo in a checkout.", file=sys.stderr)
        return 2
    demo = Demo()
    # Also if a script started us in the background: then SIGINT is ignored until we set it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, demo.interrupt)
    try:
        demo.show()
    except Failed as e:
        print(e, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    finally:
        demo.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())

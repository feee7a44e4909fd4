"""A dispatcher with a real journal, ledgers and files, between a test and what a sink takes."""

import time
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.support.deadline import eventually
from watchman.config.settings import (
    BrokerSettings,
    MoveSettings,
    OnFailed,
    ProftpdSettings,
    Settings,
    TaskSettings,
    WatchSettings,
)
from watchman.dispatch.dispatcher import Dispatcher
from watchman.operate.interventions import Interventions
from watchman.operate.queue_view import QueueView
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.uploads.upload import (
    Answer,
    Kind,
    Notification,
    Outcome,
    Report,
    Source,
    State,
    Upload,
)

TASKS = (
    TaskSettings(name="csv", patterns=("*.csv",), broker="b", task="import_csv"),
    TaskSettings(name="nc", patterns=("*.nc",), broker="c", task="import_nc"),
)


@dataclass
class Clock:
    """The machine's clocks, `ahead` seconds ahead; one that is `still` stands but for that.

    Only the monotonic one can stand: the other tells when things were. That one is set wrong by
    `shift` seconds.
    """

    ahead: float = 0.0
    shift: float = 0.0
    still: bool = False

    def time(self) -> float:
        return time.time() + self.ahead + self.shift

    def monotonic(self) -> float:
        return (1.0 if self.still else time.monotonic()) + self.ahead


@dataclass
class Inside:
    """All between sources and sinks, on a spool below `tmp_path`, and watches beside it."""

    tmp_path: Path
    _: KW_ONLY
    clock: Clock = field(default_factory=Clock)
    rescans: list[str] = field(default_factory=list)
    segment_size: int = 1 << 20
    watches: tuple[WatchSettings, ...] = ()
    tasks: tuple[TaskSettings, ...] = TASKS
    moves: dict[str, MoveSettings] = field(default_factory=dict)
    on_failed: OnFailed | None = None
    proftpd: ProftpdSettings = field(default_factory=ProftpdSettings)
    #: Whether the transfer log, which is what tests say of it, is not read to its end when asked.
    log_lags: bool = False

    def open(self) -> None:
        spool = self.tmp_path / "spool"
        spool.mkdir(exist_ok=True)
        watches = self.watches or tuple(
            WatchSettings(name, str(self.tmp_path / name)) for name in ("ftp", "other")
        )
        self.settings = Settings(
            file="watchman.ini",
            spool=str(spool),
            socket="",
            admins=(),
            log_level="DEBUG",
            log_file="",
            log_format="text",
            drain=1.0,
            history=3600.0,
            keep_failed=30 * 86_400.0,
            watches={watch.name: watch for watch in watches},
            brokers={
                name: BrokerSettings(name, "memory://") for name in {t.broker for t in self.tasks}
            },
            tasks=self.tasks,
            proftpd=self.proftpd,
            moves=self.moves,
            on_failed=self.on_failed,
        )
        self.ledgers = {}
        for name, watch in self.settings.watches.items():
            Path(watch.path).mkdir(exist_ok=True)
            self.ledgers[name] = Ledger(str(spool / name), watch.path)
            if not self.ledgers[name].open():
                self.ledgers[name].begin(0)
        self.journal = Journal(
            str(spool / "journal"), str(spool / "history"), segment_size=self.segment_size
        )
        self.dispatcher = Dispatcher(
            self.settings,
            journal=self.journal,
            ledgers=self.ledgers,
            rescan=lambda watch, _: self.rescans.append(watch),
            request_later=lambda watch, _: self.rescans.append(watch),
            read_log=lambda: None if self.log_lags else self.catch_up(),
            clock=self.clock.time,
            monotonic=self.clock.monotonic,
        )
        self.pipeline = self.dispatcher.pipeline
        self.dispatcher.start()

    def catch_up(self) -> None:
        """The log holds nothing but what was said of it."""
        self.dispatcher.caught_up(self.clock.monotonic())

    def close(self) -> None:
        """End as by kill -9: what ledgers hold in memory is lost."""
        self.dispatcher.stop()
        self.dispatcher.join()
        self.journal.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def write(self, name: str, content: str = "1,2,3\n", watch: str = "ftp") -> Path:
        path = self.tmp_path / watch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def say(
        self,
        path: Path,
        source: Source = Source.INOTIFY,
        kind: Kind = Kind.COMPLETED,
        old: Path | str = "",
    ) -> Answer:
        is_directory = kind is Kind.RENAMED and path.is_dir()
        notification = Notification(
            kind, str(path), source, old_path=str(old), is_directory=is_directory
        )
        if is_directory:
            self.dispatcher.submit(notification)
            return Answer(Outcome.OK)
        return self.hear(notification)

    def hear(self, notification: Notification) -> Answer:
        """Submit what a source says, and wait for the answer."""
        answers: SimpleQueue[Answer] = SimpleQueue()
        self.dispatcher.submit(notification, answers.put)
        return answers.get(timeout=10)

    def closed(self, path: Path) -> Outcome:
        """Have inotify say that somebody closed a file who had it open for writing."""
        word = Notification(Kind.COMPLETED, str(path), Source.INOTIFY, closed=True)
        return self.hear(word).outcome

    def unsettled(self) -> QueueView:
        return QueueView(self.pipeline, journal=self.journal, sinks=dict)

    def retry(self, **fields: str) -> list[str]:
        """Have uploads tried again as by `watchman retry`; return their ids."""
        hand = Interventions(self.unsettled(), dispatcher=self.dispatcher, hurry=lambda *_: None)
        return [row["id"] for row in hand.retry(fields) if row and not row["refused"]]

    def rows(self) -> list[dict[str, Any]]:
        return [row for row in self.unsettled().rows() if row is not None]


@dataclass
class House(Inside):
    """A dispatcher between what a test says and what a publisher would take."""

    def take(self, broker: str = "b", patience: float = 0.0) -> list[Upload]:
        return self.pipeline.take(broker, 100, patience)

    def settle(self, upload: Upload, state: State = State.DONE, reason: str = "") -> None:
        self.pipeline.report([Report(upload, state, reason)])
        eventually(lambda: self.pipeline.settled[state.value])

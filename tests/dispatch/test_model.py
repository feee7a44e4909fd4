"""Dispatcher, journal and ledgers, through random interleavings, against a simple model."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.house import Clock, House
from tests.support.model import (
    Files,
    Session,
    Transfer,
    Word,
    Write,
    cut_last_batch,
    ledgers,
    say,
    sizes,
    state,
)
from watchman.config.settings import ProftpdSettings, WatchSettings
from watchman.errors import JournalUnwritable
from watchman.sources.scan.scan import FRESH
from watchman.store.groupcommit import RETRY
from watchman.uploads.upload import Kind, Outcome, Report, Source, State, Upload

#: Seconds of `confirm` and `settle`: far from what a run takes.
CONFIRM, SETTLE = 100.0, 50.0

LOG = "/var/log/proftpd/watchman/uploads.log"

#: Filesystems below a watch: their first files have the same inode numbers.
DISKS = ("ftp/x", "ftp/y")

PLACES = (
    *("ftp/a.csv", "ftp/b.csv", "ftp/a.dat", "ftp/a.csv.part", "ftp/d/a.csv", "other/a.csv"),
    *(f"{disk}/a.csv" for disk in DISKS),
)
DIRECTORIES = ("ftp/d", "ftp/e", "other/d")

places = st.sampled_from(PLACES)
#: 0 is any program, the others are sessions of ProFTPD.
sessions = st.integers(0, 2)
#: Whether inotify's event is read at once.
prompt = st.booleans()


def are_apart(path: Path, new: Path) -> bool:
    """Whether one cannot be renamed to the other: they are on two filesystems."""
    return path.parent.stat().st_dev != new.parent.stat().st_dev


class Interleavings(RuleBasedStateMachine):
    """What happens to files, is said of them, and goes wrong, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.tmp = Path(tempfile.mkdtemp(prefix="watchman-model-"))
        self.files = Files()
        self.transfers: dict[Path, Transfer] = {}
        self.sessions: dict[int, Session] = {}
        #: Sessions that are dead for the files, and yet to be seen dead.
        self.dying: list[Session] = []
        self.events: deque[Word] = deque()
        self.hooks: deque[Word] = deque()
        self.found: deque[Word] = deque()
        self.log: list[Word] = []
        self.read = 0
        self.in_hand: list[tuple[Upload, Write]] = []
        self.by_id: dict[str, Write] = {}
        self.begun: set[tuple[str, Path]] = set()
        self.is_up = False
        self.disks: list[Path] = []
        #: What is to be noted once files may grow again.
        self.unsaid: list[str] | None = None

    # What is set up, and what goes on by itself.

    @initialize(
        proftpd=st.booleans(),
        log=st.booleans(),
        unconfirmed=st.sampled_from(["accept", "hold"]),
        settle=st.sampled_from([0.0, SETTLE]),
        segment=st.sampled_from([500, 1 << 20]),
        disks=st.booleans(),
    )
    def begin(
        self, proftpd: bool, log: bool, unconfirmed: str, settle: float, segment: int, disks: bool
    ) -> None:
        common = {"confirm": CONFIRM, "settle": settle}
        self.watches = (
            WatchSettings(
                "ftp",
                str(self.tmp / "ftp"),
                proftpd=proftpd,
                unconfirmed=unconfirmed,
                **common,
            ),
            WatchSettings("other", str(self.tmp / "other"), **common),
        )
        self.house = House(
            self.tmp,
            clock=Clock(still=True),
            segment_size=segment,
            watches=self.watches,
            proftpd=ProftpdSettings((LOG,), "token") if log else ProftpdSettings(),
        )
        self.decisive = Source.LOG if log else Source.HOOK
        # Where fdatasync takes no time; the files need inodes that are used again.
        self.spool = Path(tempfile.mkdtemp(prefix="watchman-model-", dir="/dev/shm"))
        (self.tmp / "spool").symlink_to(self.spool)
        if disks:
            self.mount()
        self.house.open()
        self.house.catch_up()
        self.is_up = True
        (self.tmp / "ftp/d").mkdir()
        (self.tmp / "links").mkdir()

    def teardown(self) -> None:
        try:
            # A failure on the way says more than what follows from it.
            if hasattr(self, "house") and sys.exc_info()[0] is None:
                self.come_to_rest()
        finally:
            if self.is_up:
                self.house.close()
            for transfer in self.transfers.values():
                os.close(transfer.fd)
            for session in [*self.sessions.values(), *self.dying]:
                session.kill()
            for disk in self.disks:
                subprocess.run(["umount", "--lazy", disk], check=True)
            shutil.rmtree(self.tmp)
            shutil.rmtree(self.spool)

    def mount(self) -> None:
        """Have disks below a watch, where we may mount some."""
        if os.geteuid() != 0:
            return
        for name in DISKS:
            (self.tmp / name).mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "disk", self.tmp / name], check=True)
            self.disks.append(self.tmp / name)

    def let_it_work(self, *, blind: bool = False) -> None:
        """Return when nothing is left to do before the clock moves, and look at what is listed."""
        for _ in range(5):
            with contextlib.suppress(JournalUnwritable):
                self.house.dispatcher.call(lambda: None)
        for row in () if blind else self.house.rows():
            self.see(row["id"], row["path"], row["state"])

    def note(self, text: str) -> None:
        """Have a failing run tell it."""
        if self.unsaid is None:
            note(text)
        else:
            self.unsaid.append(text)

    def see(self, upload_id: str, path: str, listed: str) -> None:
        write = self.by_id.get(upload_id)
        if write is None:
            write = self.files.at.get(Path(path))
            if write is None:
                return
            self.by_id[upload_id] = write
            write.known.add(upload_id)
            write.accepted = True
            self.note(f"listed {upload_id} {path} {listed} write {write.number}")
            if listed == "failed":
                write.gave_up = True
                write.listed = Path(path)

    # What happens to files.

    def is_free(self, path: Path) -> bool:
        return path not in self.transfers and path.parent.is_dir()

    def closed(self) -> list[str]:
        """The files that nobody has open, by their names below the directory of all."""
        paths = self.files.at.keys() - self.transfers.keys()
        return sorted(str(path.relative_to(self.tmp)) for path in paths)

    def draw_closed(self, data: st.DataObject) -> Path:
        return self.tmp / data.draw(st.sampled_from(self.closed()))

    def excluded(self, path: Path) -> bool:
        return path.name.endswith(".part")

    def happen(
        self,
        kind: Kind,
        path: Path,
        write: Write | None,
        prompt: bool,
        old: Path | None = None,
        *,
        appeared: bool = False,
    ) -> None:
        """Queue what inotify says of it."""
        if not self.is_up or self.excluded(path):
            return
        word = say(kind, path, Source.INOTIFY, old_path=str(old or ""))
        if old is not None and path.is_dir():
            word = word._replace(is_directory=True)
        elif old is not None and self.excluded(old):
            word = say(Kind.COMPLETED, path, Source.INOTIFY, appeared=True)
        elif kind is Kind.COMPLETED:
            word = word._replace(closed=not appeared, appeared=appeared)
        self.events.append(Word(word, write))
        if prompt:
            self.read_events(100, repeat=False)

    @rule(place=places, size=st.sampled_from([10, 20]), kept=st.booleans(), prompt=prompt)
    def write(self, place: str, size: int, kept: bool, prompt: bool) -> None:
        """Write a file in one go, new or over an old one, perhaps with the times it had."""
        path = self.tmp / place
        if not self.is_free(path):
            return
        before = state(path) if path in self.files.at else None
        write, content = self.files.content(size)
        self.files.at[path] = write
        self.files.put(path, content, "wb")
        if kept and before is not None:
            os.utime(path, ns=(before.mtime, before.mtime))
        write.may_fail = self.is_held_as_failed(path)
        self.happen(Kind.COMPLETED, path, write, prompt)

    def is_held_as_failed(self, path: Path) -> bool:
        """Whether what is written there is taken for more of a transfer that has failed.

        By SFTP that is told before the file is closed, and it may be written until then.
        """
        noticed = self.house.dispatcher.hold_queue.get(str(path))
        if noticed is None or not noticed.failure or noticed.state is None:
            return False
        return noticed.state.inode == path.stat().st_ino

    @precondition(closed)
    @rule(data=st.data(), prompt=prompt)
    def append(self, data: st.DataObject, prompt: bool) -> None:
        path = self.draw_closed(data)
        write, content = self.files.content(5)
        self.files.at[path] = write
        self.files.put(path, content, "ab")
        write.may_fail = self.is_held_as_failed(path)
        self.happen(Kind.COMPLETED, path, write, prompt)

    @precondition(closed)
    @rule(data=st.data(), times=st.booleans())
    def touch(self, data: st.DataObject, times: bool) -> None:
        """Change a file's rights or its times."""
        path = self.draw_closed(data)
        mode = path.stat().st_mode ^ 0o040
        while True:
            if times:
                os.utime(path, (1, 1))
            else:
                path.chmod(mode)
            if self.files.is_stamped(path):
                break
        write = self.files.at[path]
        write.touched = True
        if write.crossed:
            # docs/promises.rst, too; nobody may have looked in between.
            write.may_be_new()

    @precondition(closed)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        path = self.draw_closed(data)
        path.unlink()
        del self.files.at[path]

    @precondition(closed)
    @rule(data=st.data(), new=places, session=sessions, hooked=st.booleans(), prompt=prompt)
    def rename(
        self, data: st.DataObject, new: str, session: int, hooked: bool, prompt: bool
    ) -> None:
        """Rename a file, as a client of ProFTPD or not, perhaps over another."""
        source, target = self.draw_closed(data), self.tmp / new
        if source == target or not self.is_free(target) or are_apart(source, target):
            return
        self.serve_hooks(session)
        write = self.files.at[source]
        words = [*self.events, *self.hooks, *self.found, *self.log[self.read :]]
        if str(target) in [word.notification.path for word in words]:
            # What is said of the file that was there is taken for said of this one.
            write.may_be_new()
        self.files.wait_for_clock(source)
        self.files.move(source, target)
        self.files.is_stamped(target)
        self.renamed(write, source, target)
        if session:
            self.told_by_proftpd(Kind.RENAMED, target, write, session, hooked, old_path=str(source))
        self.happen(Kind.RENAMED, target, write, prompt, source)

    @precondition(closed)
    @rule(data=st.data(), new=places, prompt=prompt)
    def link_and_unlink(self, data: st.DataObject, new: str, prompt: bool) -> None:
        """Rename a file as OpenSSH does, see SSH_FXP_RENAME in its sftp-server.c."""
        source, target = self.draw_closed(data), self.tmp / new
        if target.exists() or not self.is_free(target) or are_apart(source, target):
            return
        write = self.files.at[source]
        self.files.wait_for_clock(source)
        target.hardlink_to(source)
        source.unlink()
        self.files.at[target] = self.files.at.pop(source)
        self.files.is_stamped(target)
        write.told.clear()
        write.whole = False
        # docs/promises.rst: "a file becomes a second upload when OpenSSH's server renames it".
        write.may_be_new()
        self.happen(Kind.COMPLETED, target, write, prompt, appeared=True)

    @precondition(closed)
    @rule(data=st.data())
    def link_away(self, data: st.DataObject) -> None:
        """Keep a file elsewhere by another name, as a backup does: its ctime and links change."""
        path, kept = self.draw_closed(data), self.tmp / "links/kept"
        if are_apart(path, kept):
            return
        self.files.wait_for_clock(path)
        kept.unlink(missing_ok=True)
        kept.hardlink_to(path)
        self.files.is_stamped(path)
        self.files.at[path].touched = True
        if self.files.at[path].crossed:
            self.files.at[path].may_be_new()

    def renamed(self, write: Write, old: Path, new: Path) -> None:
        write.told.clear()
        write.whole = False
        if old.suffix != ".csv" or new.suffix != ".csv":
            # docs/moving.rst: "Such names are excluded, and watchman notices the rename."
            write.may_be_new()
        if not self.is_up:
            # docs/promises.rst: "A file that was renamed while watchman was not running"
            write.may_be_new()

    @rule(old=st.sampled_from(DIRECTORIES), new=st.sampled_from(DIRECTORIES), prompt=prompt)
    def rename_directory(self, old: str, new: str, prompt: bool) -> None:
        source, target = self.tmp / old, self.tmp / new
        if not source.is_dir() or target.exists():
            return
        if any(source in path.parents for path in self.transfers):
            return
        inside = [write for path, write in self.files.at.items() if source in path.parents]
        self.files.move(source, target)
        for write in inside:
            write.told.clear()
            if write.in_doubt and not self.is_up:
                # docs/promises.rst: not settled and not found in its place, it "is an upload then".
                write.may_be_new()
            if ("other" in old) != ("other" in new):
                write.crossed = True
                if write.touched:
                    # docs/promises.rst: "or comes into another watch with its directory"
                    write.may_be_new()
        self.happen(Kind.RENAMED, target, None, prompt, source)

    @precondition(lambda self: not (self.tmp / "ftp/d").is_dir())
    @rule()
    def make_directory(self) -> None:
        (self.tmp / "ftp/d").mkdir()

    # What clients of ProFTPD do.

    def session(self, number: int) -> str:
        if not number:
            return ""
        if number not in self.sessions:
            self.sessions[number] = Session()
        return self.sessions[number].name

    def told_by_proftpd(
        self,
        kind: Kind,
        path: Path,
        write: Write,
        session: int,
        hooked: bool,
        **more: object,
    ) -> None:
        """Have ProFTPD's hook run, and its log written where there is one."""
        name = self.session(session)
        if hooked and self.is_up:
            self.hooks.append(Word(say(kind, path, Source.HOOK, session=name, **more), write))
        if self.decisive is Source.LOG and kind not in (Kind.STARTED, Kind.ENDED):
            pid = name.partition(".")[0] + "."
            size = path.stat().st_size if kind is Kind.COMPLETED else None
            more = {"size": size, **more}
            if any(
                word.notification.kind is Kind.FAILED
                and word.notification.path == more.get("old_path")
                for word in self.log
            ):
                # To the log it is the file of which that was said, whoever has replaced it.
                write.may_fail = True
            self.log.append(Word(say(kind, path, Source.LOG, session=pid, **more), write))

    def serve_hooks(self, session: int) -> None:
        """A session waits for each hook that it runs."""
        name = self.session(session)
        if name:
            for word in [word for word in self.hooks if word.notification.session == name]:
                self.hooks.remove(word)
                self.hear(word)

    @rule(place=places, session=sessions, hooked=st.booleans(), resume=st.booleans())
    def begin_transfer(self, place: str, session: int, hooked: bool, resume: bool) -> None:
        path = self.tmp / place
        if not self.is_free(path) or any(
            t.session == self.session(session) for t in self.transfers.values() if session
        ):
            return
        self.serve_hooks(session)
        if session and hooked and self.is_up:
            name = self.session(session)
            self.hear(Word(say(Kind.STARTED, path, Source.HOOK, session=name)))
            self.begun.add((name, path))
        write, content = self.files.content(5)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if resume else os.O_TRUNC)
        fd = os.open(path, flags, 0o644)
        os.write(fd, content)
        write.may_fail = not session and self.is_held_as_failed(path)
        self.files.at[path] = write
        self.transfers[path] = Transfer(fd, path, write, self.session(session))

    @precondition(lambda self: self.transfers)
    @rule(
        data=st.data(),
        end=st.sampled_from(["good", "good", "failed", "failed early", "killed"]),
        hooked=st.booleans(),
        prompt=prompt,
    )
    def end_transfer(self, data: st.DataObject, end: str, hooked: bool, prompt: bool) -> None:
        place = data.draw(
            st.sampled_from(sorted(str(p.relative_to(self.tmp)) for p in self.transfers))
        )
        path = self.tmp / place
        transfer = self.transfers.pop(path)
        write = transfer.write
        number = next((n for n, s in self.sessions.items() if s.name == transfer.session), 0)
        if number and end == "failed early":
            # SFTP: the hook runs before the file is closed.
            self.told_by_proftpd(Kind.FAILED, path, write, number, hooked, reason="451")
            self.serve_hooks(number)
        while True:
            os.write(transfer.fd, b"... %d" % write.number)
            if self.files.is_stamped(path):
                break
        os.close(transfer.fd)
        self.happen(Kind.COMPLETED, path, write, prompt)
        if not number:
            return
        if end == "killed":
            self.forget(transfer.session)
            self.dying.append(self.sessions.pop(number))
        elif end == "good":
            self.told_by_proftpd(Kind.COMPLETED, path, write, number, hooked)
        elif end == "failed":
            self.told_by_proftpd(Kind.FAILED, path, write, number, hooked, reason="426")

    def forget(self, session: str) -> None:
        """A session ends, or dies: what it has begun and not ended has failed."""
        for name, path in [pair for pair in self.begun if pair[0] == session]:
            self.begun.discard((name, path))
            if path in self.files.at:
                self.files.at[path].may_fail = True

    # What is heard.

    def hear(self, word: Word, *, blind: bool = False) -> None:
        """Say a word to the dispatcher; with `blind` it crashes before anybody is answered."""
        if not self.is_up:
            return
        notification = word.notification
        path = Path(notification.path)
        write = self.files.at.get(path)
        was_accepted = write is not None and write.accepted
        self.expect(word, write)
        if notification.is_directory:
            self.house.dispatcher.submit(notification)
            self.let_it_work(blind=blind)
            return
        if notification.source is Source.LOG:
            self.read += 1
            self.house.dispatcher.submit_lines(LOG, [notification], self.read)
            self.let_it_work(blind=blind)
            answer = None
        else:
            answer = self.house.hear(notification)
            self.let_it_work(blind=blind)
        self.note(f"{notification.source} {notification.kind} {path} -> {answer}")
        if write is None or blind or (answer and answer.outcome is Outcome.ERROR):
            # docs/promises.rst: it remembers them "for as long as it runs", and that may be short.
            return
        if answer and answer.outcome is Outcome.OK and answer.detail:
            write.told.add(answer.detail)
            write.known.add(answer.detail)
        if notification.source is self.decisive and notification.kind is not Kind.FAILED:
            if write.gave_up:
                # What was listed as failed under that id is another upload by this better word.
                write.told.clear()
            write.gave_up = False
        if notification.source is self.decisive and word.write is write:
            if notification.kind is Kind.FAILED and not was_accepted and not write.may_repeat:
                write.failed = True
            elif notification.kind is not Kind.FAILED:
                write.confirmed = True
                write.failed = False
                write.whole |= notification.kind is Kind.COMPLETED

    def expect(self, word: Word, write: Write | None) -> None:
        """What a word may do to the write that it meets."""
        notification = word.notification
        if notification.kind in (Kind.COMPLETED, Kind.FAILED):
            session = notification.session.partition(".")[0] + "."
            self.begun = {
                (name, path)
                for name, path in self.begun
                if not (name.startswith(session) and str(path) == notification.path)
            }
        if notification.kind is Kind.FAILED and word.write is not None:
            # It may have left, and be told of by its old name when it is renamed.
            word.write.may_fail = True
        if write is None:
            return
        if notification.kind is Kind.FAILED:
            write.may_fail = True
        elif write.touched and notification.source is not Source.SCAN:
            # docs/promises.rst: "when somebody changes the file's times, and the file is then
            # opened for writing and closed"
            write.may_be_new()
            write.told.clear()

    @precondition(lambda self: self.is_up and self.events)
    @rule(number=st.sampled_from([1, 1, 100]), repeat=st.booleans())
    def read_events(self, number: int, repeat: bool) -> None:
        while self.events and number:
            word = self.events.popleft()
            for _ in range(1 + (repeat and word.notification.kind is Kind.COMPLETED)):
                self.hear(word)
            number -= 1

    @precondition(lambda self: self.is_up and self.hooks)
    @rule(data=st.data())
    def run_hook(self, data: st.DataObject) -> None:
        names = list(dict.fromkeys(word.notification.session for word in self.hooks))
        name = data.draw(st.sampled_from(names))
        word = next(word for word in self.hooks if word.notification.session == name)
        self.hooks.remove(word)
        self.hear(word)

    @precondition(lambda self: self.is_up and self.read < len(self.log))
    @rule(number=st.sampled_from([1, 100]))
    def read_log(self, number: int) -> None:
        for word in self.log[self.read : self.read + number]:
            self.hear(word)

    @precondition(lambda self: self.is_up)
    @rule(watch=st.sampled_from(["ftp", "other"]), at_once=st.booleans())
    def scan(self, watch: str, at_once: bool) -> None:
        """Walk a watch; what is found is heard of at once, or while more happens."""
        sweep = self.house.ledgers[watch].sweep()
        for path in sorted((self.tmp / watch).rglob("*")):
            subpath = str(path.relative_to(self.tmp / watch))
            if path.is_file() and not sweep.known(subpath, state(path)) and not self.excluded(path):
                patience = FRESH if path.stat().st_ino in self.files.fresh else 0.0
                self.found.append(Word(say(Kind.COMPLETED, path, Source.SCAN, patience=patience)))
        # Word of a rename is on its way for a moment.
        renames = [word for word in self.events if word.notification.kind is Kind.RENAMED]
        sweep.finish(complete=not renames)
        if at_once:
            self.hear_of_found(100)

    @precondition(lambda self: self.is_up and self.found)
    @rule(number=st.sampled_from([1, 100]))
    def hear_of_found(self, number: int) -> None:
        while self.found and number:
            self.hear(self.found.popleft())
            number -= 1

    @precondition(lambda self: self.is_up and self.sessions)
    @rule(data=st.data())
    def end_session(self, data: st.DataObject) -> None:
        """Quit; the hook says so."""
        number = data.draw(st.sampled_from(sorted(self.sessions)))
        name = self.session(number)
        if any(transfer.session == name for transfer in self.transfers.values()):
            return
        self.quit(number)

    def quit(self, number: int) -> None:
        self.serve_hooks(number)
        self.forget(self.session(number))
        self.hear(Word(say(Kind.ENDED, "", Source.HOOK, session=self.session(number))))
        self.sessions.pop(number).kill()

    @precondition(lambda self: self.dying)
    @rule()
    def see_death(self) -> None:
        """A session is seen to have died; not when the machine comes to it, but when we say."""
        self.dying.pop(0).kill()
        if self.is_up:
            self.let_it_work()

    # What becomes of uploads.

    @precondition(lambda self: self.is_up)
    @rule(limit=st.sampled_from([1, 100]))
    def take(self, limit: int) -> None:
        self.take_some(limit)

    def take_some(self, limit: int) -> None:
        for upload in self.house.pipeline.take("b", limit, 0.0):
            write = self.files.writes[self.files.number(Path(upload.path))]
            self.note(f"taken {upload.id} {upload.path} write {write.number}")
            self.in_hand.append((upload, write))
        self.let_it_work()

    @precondition(lambda self: self.is_up and self.in_hand)
    @rule(
        data=st.data(), end=st.sampled_from([State.DONE, State.DONE, State.DEFERRED, State.FAILED])
    )
    def report(self, data: st.DataObject, end: State) -> None:
        pair = data.draw(st.sampled_from(self.in_hand))
        self.report_on(pair, end)

    def report_on(self, pair: tuple[Upload, Write], end: State) -> None:
        self.in_hand.remove(pair)
        upload, write = pair
        if end is State.DONE:
            self.send(upload, write)
        elif end is State.FAILED:
            write.may_fail = True
        lane, delay = ("full", 30.0) if end is State.DEFERRED else ("", 0.0)
        self.house.pipeline.report([Report(upload, end, "", lane=lane, delay=delay)])
        self.let_it_work()

    def send(self, upload: Upload, write: Write) -> None:
        self.note(f"sent {upload.id} {upload.path} write {write.number}")
        write.sent.add(upload.id)
        assert not write.failed, "a failed transfer was sent"
        # What may be two uploads may have been in hand as one and fail as the other.
        assert not write.gave_up or write.may_repeat, "what was listed as failed was sent"
        assert len(write.sent) == 1 or write.may_repeat, "a write was sent under two ids"
        others = [w for w in self.files.writes if upload.id in w.sent and w is not write]
        assert not others or write.may_repeat, "an id was sent for two writes"

    @precondition(lambda self: self.is_up)
    @rule(seconds=st.sampled_from([2.0, 60.0, 300.0]))
    def wait(self, seconds: float) -> None:
        """Inotify's word comes within a moment, or it is lost."""
        self.read_events(1000, repeat=False)
        self.files.fresh.clear()
        self.house.clock.ahead += seconds
        self.let_it_work()

    # What goes wrong.

    @precondition(lambda self: self.is_up)
    @rule(
        how=st.sampled_from(["killed", "killed after tasks were sent", "stopped"]),
        down=st.sampled_from([False, False, True]),
    )
    def end(self, how: str, down: bool) -> None:
        """End at once or in order, and start again, perhaps not before more has happened."""
        if how == "killed after tasks were sent":
            for upload, write in self.in_hand:
                self.send(upload, write)
                write.in_doubt = True
        self.house.close()
        if how == "stopped":
            self.house.dispatcher.close()
        self.be_down(down)

    def be_down(self, down: bool) -> None:
        self.is_up = False
        self.lose_events()
        for queue in (self.hooks, self.found, self.in_hand):
            queue.clear()
        if not down:
            self.start()

    @precondition(lambda self: self.is_up and (self.events or self.hooks or self.in_hand))
    @rule(data=st.data(), share=st.floats(0, 1), down=st.sampled_from([False, False, True]))
    def lose_power(self, data: st.DataObject, share: float, down: bool) -> None:
        """Cut the batch that is being written, of which nobody was told."""
        journal, spool = self.tmp / "spool" / "journal", self.tmp / "spool"
        batches, others = sizes(journal), ledgers(spool)
        choices = [q for q in (self.events, self.hooks) if q]
        if self.in_hand:
            choices.append(self.in_hand)
        queue = data.draw(st.sampled_from(choices))
        if queue is self.in_hand:
            upload, write = self.in_hand[0]
            self.send(upload, write)
            write.in_doubt = True
            self.house.pipeline.report([Report(upload, State.DONE)])
            self.let_it_work(blind=True)
        else:
            self.hear(queue.popleft(), blind=True)
        self.house.close()
        if ledgers(spool) == others and sizes(journal).keys() >= batches.keys():
            cut_last_batch(journal, batches, share)
        self.be_down(down)

    @precondition(lambda self: self.is_up and (self.events or self.hooks or self.in_hand))
    @rule(room=st.integers(0, 300), dies=st.sampled_from([True, True, False]))
    def have_no_room(self, room: int, dies: bool) -> None:
        """Hear of something while the journal cannot be written, and perhaps die of it."""
        journal = self.tmp / "spool" / "journal"
        limit = max(sizes(journal).values(), default=0) + room
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A new segment would have room. Nor may what pytest keeps of our output grow.
        self.unsaid = []
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(limit, room), hard))
        try:
            if self.in_hand:
                self.report_on(self.in_hand[0], State.DONE)
            for queue in (self.events, self.hooks):
                if queue:
                    self.lose([queue[0]] if dies else [])
                    self.hear(queue.popleft())
            if dies:
                self.house.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            unsaid, self.unsaid = self.unsaid, None
            for text in unsaid:
                note(text)
        if dies:
            self.be_down(down=False)
        else:
            self.house.clock.ahead += RETRY
            self.let_it_work()
            assert not self.house.dispatcher.unwritable()

    @precondition(lambda self: self.is_up and self.events)
    @rule()
    def overflow(self) -> None:
        """Lose what inotify has to say."""
        self.lose_events()

    def lose_events(self) -> None:
        self.lose(self.events)
        self.events.clear()

    def lose(self, words: Iterable[Word]) -> None:
        """What was renamed while nobody noticed is a new upload."""
        for word in words:
            if word.notification.kind is Kind.RENAMED:
                for write in [word.write] if word.write else self.below(word):
                    write.may_be_new()

    def below(self, word: Word) -> list[Write]:
        return [w for p, w in self.files.at.items() if Path(word.notification.path) in p.parents]

    @precondition(lambda self: not self.is_up)
    @rule()
    def start(self) -> None:
        self.house.open()
        self.is_up = True
        self.read = self.house.dispatcher.marked().get(LOG, 0)
        self.let_it_work()
        # "The log is read to its end before a scan decides about what it tells of."
        for word in self.log[self.read :]:
            self.hear(word)
        self.house.catch_up()
        self.let_it_work()

    @invariant()
    def nothing_is_lost(self) -> None:
        """What a source was told with OK is sent or listed, for as long as its file is there."""
        if not self.is_up:
            return
        rows = {row["id"] for row in self.house.rows() + self.house.dispatcher.hold_queue.rows()}
        for path, write in self.files.at.items():
            if path.suffix != ".csv":
                continue
            assert write.told <= rows | write.sent, f"{path} was acknowledged"

    def come_to_rest(self) -> None:
        """After all is over and scanned, each file was sent once for what it holds last."""
        for path in list(self.transfers):
            transfer = self.transfers.pop(path)
            os.close(transfer.fd)
            transfer.write.may_fail = True
            self.happen(Kind.COMPLETED, path, transfer.write, prompt=True)
        if not self.is_up:
            self.start()
        while self.dying:
            self.see_death()
        self.read_events(1000, repeat=False)
        for number in list(self.sessions):
            self.quit(number)
        while self.hooks:
            self.hear(self.hooks.popleft())
        self.read_log(1000)
        for _ in range(3):
            for watch in ("ftp", "other"):
                self.scan(watch, at_once=True)
            for _ in range(4):
                self.wait(2 * CONFIRM)
                self.take_some(100)
                while self.in_hand:
                    self.report_on(self.in_hand[0], State.DONE)
        rows = self.house.rows()
        held = self.house.dispatcher.hold_queue.rows()
        assert not held, held
        # By their paths, too: an id that was drawn for a write that came to nothing may be a later
        # one's.
        failed = {row[name] for row in rows if row["state"] == "failed" for name in ("id", "path")}
        assert [row for row in rows if row["state"] != "failed"] == []
        for path, write in self.files.at.items():
            if path.suffix == ".csv":
                self.check(path, write, failed)

    def check(self, path: Path, write: Write, failed: set[str]) -> None:
        if write.sent:
            return
        assert write.may_fail or not write.whole, ("was whole", path, write)
        may_fail = write.failed or write.listed or write.may_fail or self.is_unconfirmed(write)
        assert may_fail, (path, write)
        # docs/operating.rst: "until its path is written again", which may be another file by then.
        listed = write.known & failed or str(path) in failed
        assert listed or write.listed not in (None, path), ("not even listed", path, write)

    def is_unconfirmed(self, write: Write) -> bool:
        """Whether [watch:...] says that it has failed, as ProFTPD did not speak of it."""
        watch = self.watches[0]
        return watch.proftpd and watch.unconfirmed == "hold" and not write.confirmed


#: What a failing run prints can be run again: reproduce_failure, see hypothesis's documentation.
COMMON = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    database=None,
)


# The same ones each time, and the first that fails is shown as it is: this is to be quick.
@pytest.mark.timeout(300)
def test_no_interleaving_loses_repeats_or_sends_what_failed() -> None:
    few = settings(
        COMMON,
        max_examples=250,
        stateful_step_count=40,
        derandomize=True,
        phases=[Phase.generate],
    )
    run_state_machine_as_test(Interleavings, settings=few)


# Others each time, some 10 a second as long as none fails; then it takes its time to find a short
# one.
@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_none_of_thousands_of_interleavings_does() -> None:
    many = settings(COMMON, max_examples=10_000, stateful_step_count=60)
    run_state_machine_as_test(Interleavings, settings=many)

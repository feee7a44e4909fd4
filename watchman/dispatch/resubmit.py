"""Makes an upload of a file that is resubmitted by hand, whatever was decided about it before."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from watchman.config import places
from watchman.config.moves import origin_of
from watchman.config.rules import Rules
from watchman.config.settings import MoveSettings
from watchman.dispatch.decisions import Decisions
from watchman.dispatch.hold_queue import Holding
from watchman.dispatch.verdicts import Accept, PassOver
from watchman.errors import NotBelowWatch
from watchman.sinks.pipeline import Pipeline, task_of
from watchman.store.groupcommit import GroupCommit
from watchman.uploads import beneath
from watchman.uploads.outcome import Outcome
from watchman.uploads.upload import Answer, Notification, Respond, State, Upload

#: What an operator is told to do who has named something else than a file.
FILES = "name files below a watch, each by its own path, as `find DIRECTORY -type f` does"


@dataclass(kw_only=True, eq=False)
class Resubmitter:
    """Accepts the files that watchman-send names. Only the dispatcher's thread calls it."""

    rules: Rules
    holding: Holding
    decisions: Decisions
    pipeline: Pipeline
    commit: GroupCommit
    clock: Callable[[], float]

    def accept(self, notification: Notification, answer: Respond) -> None:
        """Accept a file that an operator names, or answer ERROR and why it cannot be."""
        located = self.rules.locate(notification.path)
        move = self.rules.moved_by(notification.path)
        if move is not None:
            self._accept_moved(notification, move, answer)
            return
        if located is None:
            why = places.why_nowhere(self.rules.watches(), notification.path)
            answer(Answer(Outcome.ERROR, f"{why}; {FILES}"))
            return
        watch, subpath = located
        path = beneath.below(watch.path, subpath)
        look = _look(watch.path, subpath, answer)
        if look is None:
            return
        with look:
            if reason := self._refusal(path, notification, look):
                answer(Answer(Outcome.ERROR, reason))
                return
            verdict = Accept(look.state, notification, look.ownership, look.sample())
        held = self.holding.queue.pop(path)
        if held is not None and held.id and notification.old_id:
            # With --same-id the upload gets that id, so the id that it was held under ends here.
            self.holding.release(held, PassOver(look.state))
            held = None
        self.decisions.accept(watch, subpath, verdict, answer, held)

    def _refusal(self, path: str, notification: Notification, look: beneath.Look) -> str:
        """Return why a file below a watch cannot be an upload, "" if it can."""
        if not self.rules.matches(path, notification.resubmit_as):
            return "no task matches it; give --as PATH"
        return "it is being written" if look.writing else look.ownership.refusal()

    def _accept_moved(
        self, notification: Notification, move: MoveSettings, answer: Respond
    ) -> None:
        """Accept a file that was moved before. It stays where it is, and only its task is sent."""
        path = notification.path
        look = _look(move.destination, os.path.relpath(path, move.destination), answer)
        if look is None:
            return
        with look:
            state = look.state
        original = notification.resubmit_as or origin_of(move, path)
        task = self.rules.task_for(original)
        if task is None:
            answer(Answer(Outcome.ERROR, f"no task matches it as {original}; give --as PATH"))
            return
        located = self.rules.locate(original)
        upload = Upload(
            id=notification.old_id or str(uuid.uuid4()),
            watch=located[0].name if located else "",
            path=path,
            original=original,
            state=state,
            # As after a move. It says that nobody need look for the file below a watch.
            source_state=state,
            source=notification.source,
            accepted=self.clock(),
            task=None,
        )
        upload = upload._replace(task=task_of(upload, task))

        def durable(position: int) -> None:
            self.pipeline.wait(upload.at(position))
            self.pipeline.steps.count(State.ACCEPTED, upload, upload.accepted)
            answer(Answer(Outcome.OK, upload.id))

        self.commit.stage(
            {"event": State.ACCEPTED, **upload.encode()},
            durable,
            lambda reason: answer(Answer(Outcome.ERROR, reason)),
        )


def _look(root: str, subpath: str, answer: Respond) -> beneath.Look | None:
    """Look at a file that an operator names; or answer why that cannot be, and return None."""
    try:
        return beneath.look(root, subpath)
    except FileNotFoundError:
        why = "there is no such file"
    except NotBelowWatch as e:
        why = f"{e}; {FILES}"
    except OSError as e:
        why = f"it cannot be looked at: {e.strerror}"
    answer(Answer(Outcome.ERROR, why))
    return None

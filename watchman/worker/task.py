"""The base class of tasks: one upload, one piece of work, and its file sorted."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import Any, ClassVar

from celery.app.task import Task
from celery.exceptions import Ignore, ImproperlyConfigured
from celery.utils.log import get_task_logger

from watchman.worker import sorting
from watchman.worker.announced import Announced
from watchman.worker.store import Done, Store

logger = get_task_logger(__name__)


class UploadRejected(Exception):
    """Raised by a task whose file is no good: its work is done, the file goes to `rejected`."""


class UploadTask(Task):
    """A task that works on each upload once, however often its message comes.

    When `run` returns, the file goes to the folder `accepted` beside it, and to `rejected` when it
    raises UploadRejected. After any other exception, as a Retry, the file stays where it is, and
    the id is not done. Attributes may be set as options of `@app.task`.
    """

    abstract = True

    #: The sqlite file that remembers ids; else Celery's setting `watchman_done_file` names it.
    done_file: ClassVar[str | None] = None
    #: Seconds for which an id is remembered.
    keep: ClassVar[float] = 30 * 86400.0
    #: Folders beside the file; None leaves it where it is.
    accepted: ClassVar[str | None] = "accepted"
    rejected: ClassVar[str | None] = "rejected"
    #: How many processes may die at one upload before its file is rejected.
    deaths: ClassVar[int] = 5
    #: Whether the work itself writes to the file. Otherwise a file that changes meanwhile is taken
    #: for a new upload, and left for that one's task.
    writes: ClassVar[bool] = False

    # The message stays with the broker until the work is recorded, also when the process is
    # killed: without the second Celery acknowledges what a killed process had in hand.
    acks_late = True
    reject_on_worker_lost = True
    # Seconds after which a task is tried again whose store could not be opened.
    default_retry_delay = 30
    # A file that is no good is no fault, and not better the next time.
    throws = (UploadRejected,)
    dont_autoretry_for = (UploadRejected,)

    @classmethod
    def on_bound(cls, app: Any) -> None:
        cls.done_file = cls.done_file or app.conf.get("watchman_done_file")
        if not cls.done_file or not os.path.isabs(cls.done_file):
            raise ImproperlyConfigured(
                f"{cls.name}: set app.conf.watchman_done_file to the absolute path of a file that"
                " the worker may make and write"
            )

    @property
    def upload(self) -> Announced:
        """The upload that the task in hand is about; ValueError if its message has no path."""
        request = self.request
        header = (request.headers or {}).get("watchman")
        return Announced.of(request.id, header, request.args or (), request.kwargs or {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.request.called_directly:
            # As any function, by a program or a test: nothing is looked up, recorded or sorted.
            return super().__call__(*args, **kwargs)
        upload = self.upload
        assert self.done_file, "on_bound has seen to it"
        store = Store(self.done_file, self.keep)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(store.holding(upload.id))
                done = store.find(upload.id) or self._found_sorted(upload)
                times = 0 if done else store.begin(upload.id)
            except (OSError, sqlite3.Error) as error:
                # Better late than twice, and better than a task that has failed.
                raise self.retry(exc=error, max_retries=None) from error
            if done is None:
                return self._work(store, upload, times, args, kwargs)
            logger.info("Skipping upload %s: it was done before.", upload.id)
            self._sort(upload, done)
            raise Ignore

    def _found_sorted(self, upload: Announced) -> Done | None:
        """That it was done, as its file tells: by a worker of another host, or an older store."""
        if upload.inode is None or sorting.mark_of(upload.path) is not None:
            return None
        folders = (folder for folder in (self.accepted, self.rejected) if folder)
        found = any(sorting.is_sorted(upload, folder) for folder in folders)
        return Done("", None) if found else None

    def _work(self, store: Store, upload: Announced, times: int, args: Any, kwargs: Any) -> Any:
        """Do the work, record that it is done, and sort the file, in this order.

        Whatever is killed in between is begun again by the next delivery: before the record the
        work, after it the sorting.
        """
        mark = sorting.mark_of(upload.path)
        result = rejection = None
        try:
            if times > self.deaths:
                raise UploadRejected(f"the work on it has killed {times - 1} processes")
            # Not super(): outside a worker, as with `apply`, that would hide the request.
            result = self.run(*args, **kwargs)
        except UploadRejected as error:
            rejection = error
        except BaseException:
            with contextlib.suppress(OSError, sqlite3.Error):
                store.end(upload.id)
            raise
        if self.writes:
            mark = sorting.mark_of(upload.path)
        done = Done((self.rejected if rejection else self.accepted) or "", mark)
        try:
            store.record(upload.id, done)
        except (OSError, sqlite3.Error):
            logger.exception("Upload %s is done, and that could not be recorded.", upload.id)
        if not self._sort(upload, done):
            logger.warning(
                "File %r of upload %s was written or taken away meanwhile; it is not sorted.",
                *(upload.path, upload.id),
            )
        if rejection:
            raise rejection
        return result

    def _sort(self, upload: Announced, done: Done) -> bool:
        """Put the file where it belongs; False if it is not there any more."""
        if not done.folder or done.mark is None:
            return True
        return sorting.sort(upload, done.folder, done.mark)

"""The base class of tasks: it works on each upload once, and sorts the upload's file."""

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
    """A task raises this if its file is no good. The file goes to `rejected`, the work is done."""


class UploadTask(Task):
    """A task that works on each upload once, however often its message comes.

    When `run` returns, the file goes to the folder `accepted` beside it. When `run` raises
    UploadRejected, the file goes to `rejected`. After any other exception, such as Retry, the file
    stays where it is, and the id is not done. The attributes can be set as options of `@app.task`.
    """

    abstract = True

    #: The sqlite file that remembers ids. If None, Celery's setting `watchman_done_file` names it.
    done_file: ClassVar[str | None] = None
    #: Seconds for which an id is remembered.
    keep: ClassVar[float] = 30 * 86400.0
    #: Folders beside the file; None leaves it where it is.
    accepted: ClassVar[str | None] = "accepted"
    rejected: ClassVar[str | None] = "rejected"
    #: How many processes may die at one upload before its file is rejected.
    deaths: ClassVar[int] = 5
    #: Whether the work itself writes to the file. If not, a file that changes meanwhile counts as a
    #: new upload, and is left for the task of that upload.
    writes: ClassVar[bool] = False

    # The message stays with the broker until the work is recorded. Without the second setting,
    # Celery acknowledges what a killed process had in hand.
    acks_late = True
    reject_on_worker_lost = True
    # Seconds until a task is tried again if its store could not be opened.
    default_retry_delay = 30
    # A rejected file is no fault of the task, and would be rejected the next time too.
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
        """Return the upload of the task in hand. Raises ValueError if its message has no path."""
        request = self.request
        header = (request.headers or {}).get("watchman")
        return Announced.of(request.id, header, request.args or (), request.kwargs or {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.request.called_directly:
            # A program or a test called it as a function: nothing is looked up, recorded or sorted.
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
                # Better late than twice, and better late than failed.
                raise self.retry(exc=error, max_retries=None) from error
            if done is None:
                return self._work(store, upload, times, args, kwargs)
            logger.info("Skipping upload %s: it was done before.", upload.id)
            self._sort(upload, done)
            raise Ignore

    def _found_sorted(self, upload: Announced) -> Done | None:
        """Return Done if the upload's file was sorted already, else None.

        The id is in another store then: that of another host, or an older one.
        """
        if upload.inode is None or sorting.mark_of(upload.path) is not None:
            return None
        folders = (folder for folder in (self.accepted, self.rejected) if folder)
        found = any(sorting.is_sorted(upload, folder) for folder in folders)
        return Done("", None) if found else None

    def _work(self, store: Store, upload: Announced, times: int, args: Any, kwargs: Any) -> Any:
        """Do the work, record that it is done, and sort the file, in this order.

        If the process is killed, the next delivery goes on: before the record it does all the work
        again, after it only the sorting.
        """
        mark = sorting.mark_of(upload.path)
        result = rejection = None
        try:
            if times > self.deaths:
                raise UploadRejected(f"the work on it has killed {times - 1} processes")
            # Not super(): outside a worker, as with `apply`, super() would hide the request.
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
            logger.exception("Upload %s is done, but that could not be recorded.", upload.id)
        if not self._sort(upload, done):
            logger.warning(
                "File %r of upload %s was written or taken away meanwhile; it is not sorted.",
                *(upload.path, upload.id),
            )
        if rejection:
            raise rejection
        return result

    def _sort(self, upload: Announced, done: Done) -> bool:
        """Put the file where it belongs. Return False if it is not there any more."""
        if not done.folder or done.mark is None:
            return True
        return sorting.sort(upload, done.folder, done.mark)

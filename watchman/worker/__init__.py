"""For Celery workers: a base class for tasks that watchman sends.

In comes a message, through Celery; out go files in `accepted` or `rejected`, and lines in a small
store of what is done. It runs in the worker's processes, knows nothing of the daemon, and needs no
INI file: of ours it imports only how a file is renamed.
"""

from watchman.worker.announced import Announced
from watchman.worker.task import UploadRejected, UploadTask

__all__ = ["Announced", "UploadRejected", "UploadTask"]

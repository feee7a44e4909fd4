"""For Celery workers: a base class for tasks that watchman sends.

In comes a message, through Celery. Out go files in `accepted` or `rejected`, and rows in a small
store of what is done. It runs in the worker's processes, and needs neither the daemon nor an INI
file. Of our other modules it imports only `uploads.renaming`.
"""

from watchman.worker.announced import Announced
from watchman.worker.task import UploadRejected, UploadTask

__all__ = ["Announced", "UploadRejected", "UploadTask"]

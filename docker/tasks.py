"""The tasks of the trial's workers: each logs the path that it has received.

A worker is started by `celery -A tasks worker`, with the broker's url in `BROKER`.
"""

import os

from celery import Celery
from celery.app.task import Task
from celery.utils.log import get_task_logger

logger = get_task_logger(__name__)

app = Celery("trial", broker=os.environ["BROKER"])
app.conf.broker_connection_retry_on_startup = True


@app.task(bind=True)
def import_table(task: Task, path: str) -> None:
    """Log the path. A real task would read the file."""
    logger.info("Received %s %s: %s", task.name, task.request.id, path)


@app.task(bind=True)
def import_grid(task: Task, path: str) -> None:
    logger.info("Received %s %s: %s", task.name, task.request.id, path)

"""The workers of the trial: tasks that say what has arrived.

`celery -A tasks worker` with the broker's url in `BROKER`.
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
    """Say what has arrived; a real task would read the file."""
    logger.info("Received %s %s: %s", task.name, task.request.id, path)


@app.task(bind=True)
def import_grid(task: Task, path: str) -> None:
    logger.info("Received %s %s: %s", task.name, task.request.id, path)

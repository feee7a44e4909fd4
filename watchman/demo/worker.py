"""A stock Celery worker on the embedded broker: `celery -A watchman.demo.worker worker -P solo`.

To be started where `watchman.ini.example` lies.
"""

import warnings
from pathlib import Path

from celery import Celery
from celery.app.task import Task
from celery.exceptions import SecurityWarning

FOLDER = Path("var/broker").absolute()

# A host, though there is none: kombu would warn.
app = Celery("demo", broker="filesystem://localhost")
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER),
    "data_folder_out": str(FOLDER),
    "control_folder": str(FOLDER / "control"),
    "polling_interval": 0.2,
}
# Nobody is there to send it remote commands.
app.conf.worker_enable_remote_control = False
app.conf.worker_redirect_stdouts = False
# Root may try the demo: the worker takes JSON alone, and from that folder alone.
warnings.filterwarnings("ignore", category=SecurityWarning)


@app.task(bind=True)
def import_csv(task: Task, *args: object, **kwargs: object) -> None:
    """Say what has arrived; a real task would read the file."""
    print(f"Received task {task.request.id}: {task.name}, {args=}, {kwargs=}", flush=True)

"""A stock Celery worker on the embedded broker: `celery -A watchman.demo.worker worker -P solo`.

Start it in the directory of `watchman.ini.example`.
"""

import warnings
from pathlib import Path

from celery import Celery
from celery.app.task import Task
from celery.exceptions import SecurityWarning

FOLDER = Path("var/broker").absolute()

# There is no host, but kombu warns of an address without one.
app = Celery("demo", broker="filesystem://localhost")
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER),
    "data_folder_out": str(FOLDER),
    "control_folder": str(FOLDER / "control"),
    "polling_interval": 0.2,
}
# Nobody sends it remote commands.
app.conf.worker_enable_remote_control = False
app.conf.worker_redirect_stdouts = False
# Root may try the demo. The worker takes only JSON, and only from that folder.
warnings.filterwarnings("ignore", category=SecurityWarning)


@app.task(bind=True)
def import_csv(task: Task, *args: object, **kwargs: object) -> None:
    """Print what has arrived. A real task would read the file."""
    print(f"Received task {task.request.id}: {task.name}, {args=}, {kwargs=}", flush=True)

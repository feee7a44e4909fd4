"""Names in a Celery settings file that mean nothing to Celery are told, and others are not."""

from pathlib import Path

import pytest

from watchman.config import celery_file, inifile

INI = """
[watchman]
spool = spool
[celery]
config = celeryconfig.py
[broker:b]
url = redis://localhost
config = other.py
[watch:w]
path = in
[task:t]
pattern = *
broker = b
task = t
"""


def told(directory: Path, content: str) -> str:
    (directory / "celeryconfig.py").write_text(content)
    return "\n".join(celery_file.load("celeryconfig.py", str(directory)).warnings)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("BROKERS = {}", "BROKERS is of the first version's config.py; watchman import-config"),
        ("ProFTPD = True", "ProFTPD is of the first version's config.py"),
        (
            "CELERY_ROUTE = {}",
            "CELERY_ROUTE is no setting of Celery's; did you mean CELERY_ROUTES?",
        ),
        ("TASK_RUTES = {}", "did you mean TASK_ROUTES?"),
        ("task_rutes = {}", "task_rutes is no setting of Celery's; did you mean task_routes?"),
        ("SOMETHING_ELSE = 1", "SOMETHING_ELSE is no setting of Celery's"),
        ("INSTALLED_APPS = []\nCELERY_TASK_RUTES = {}", "did you mean CELERY_TASK_ROUTES?"),
    ],
)
def test_a_name_that_means_nothing_is_told(tmp_path: Path, line: str, said: str) -> None:
    assert said in told(tmp_path, line)


@pytest.mark.parametrize(
    "text",
    [
        "CELERY_ROUTES = {}\nBROKER_URL = 'amqp://h'\nCELERY_TASK_SERIALIZER = 'json'",
        "CELERY_WORKER_HIJACK_ROOT_LOGGER = False\nworker_concurrency = 2",
        "watchman_done_file = '/x'\nour_own_setting = 3\n_HIDDEN = 1",
        "HOST = 'h'\nBROKER_URL = 'amqp://' + HOST",
        "from kombu import Queue as QUEUE\nimport os as TASK_RUTES\ndef TASK_ROUTE(): pass",
        "INSTALLED_APPS = []\nDATABASES = {}\nTASK_RUTES = {}",
    ],
)
def test_settings_and_what_is_somebody_elses_are_not(tmp_path: Path, text: str) -> None:
    assert told(tmp_path, text) == ""


def test_each_section_has_its_warnings(tmp_path: Path) -> None:
    (tmp_path / "celeryconfig.py").write_text("BROKERS = {}")
    (tmp_path / "other.py").write_text("TASK_RUTES = {}")
    ini = tmp_path / "watchman.ini"
    ini.write_text(INI)
    first, second = inifile.load(str(ini)).warnings()
    assert first.startswith("[celery] config: BROKERS is of the first version's")
    assert second.startswith("[broker:b] config: TASK_RUTES is no setting of Celery's")

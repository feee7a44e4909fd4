"""`watchman import-config`: what the first version's files said becomes an INI file."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from watchman.commands.importing import import_config
from watchman.config import inifile
from watchman.config.rules import Rules
from watchman.errors import ConfigError

CONFIG = """
# -*- coding: utf-8 -*-
from collections import OrderedDict
import os

HERE = os.path.dirname(os.path.realpath(__file__))
FTP = '{tmp}/ftp'

LOGGING = {'handlers': {'file': {'filename': os.path.join('/var/log', 'watchman.log')}}}

ProFTPD = True

BROKERS = {
    '3di': 'redis://redis:6379/0',
    u'lizard': 'amqp://guest:guest@rabbitmq:5672//',
}

WATCHES = [
    {'path': FTP, 'rec': True, 'auto_add': True},
    {'path': '{tmp}/in', 'quiet': False},
]

PATTERNS = OrderedDict([
    (os.path.join(FTP, 'first/*.csv'), {
        'broker': 'lizard', 'task': 'a.b', 'kwargs': {'priority': 5}}),
    ('%s/late/*.csv' % FTP, {'broker': 'lizard', 'task': 'a.b', 'kwargs': {'expires': 300}}),
    (FTP + '/*.csv', {'broker': 'lizard', 'task': 'a.b'}),
    ('*.txt', {'broker': 'lizard', 'task': 'a.b'}),
    ('*.nc', {'broker': '3di', 'task': 'c', 'kwargs': {'kwargs': {'of': '{x}'}, 'eta': None}}),
])
PATTERNS['*.late'] = {'broker': '3di', 'task': 'd'}

MOVES = {
    FTP: '{tmp}/storage',
    '/elsewhere': '/nowhere',
}
"""

CELERY = """
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_ROUTES = {'c': {'queue': 'single'}}
CELERY_TASK_SERIALISER = 'json'
task_queue_max_priority = 10
"""


def run(*arguments: Path | str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "watchman", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


Imported = Callable[..., str]


@pytest.fixture
def imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Imported:
    """Makes an INI file of the text of a config.py and a celeryconfig.py."""

    def make(config: str, celery: str = "", code: int = 0) -> str:
        file, settings = tmp_path / "config.py", tmp_path / "celeryconfig.py"
        file.write_text(config.replace("{tmp}", str(tmp_path)))
        settings.write_text(celery)
        given = Namespace(file=str(file), settings=str(settings) if celery else None)
        found = import_config.main(given)
        output = capsys.readouterr()
        assert found == code, output.err
        return output.out

    return make


def told(text: str) -> str:
    """The notes, without the breaks of their lines."""
    return text.replace("\n#       ", " ")


def test_what_was_said_is_said_again(tmp_path: Path, imported: Imported) -> None:
    for name in ("ftp", "in", "storage"):
        (tmp_path / name).mkdir()
    text = imported(CONFIG, CELERY)
    ini = tmp_path / "watchman.ini"
    ini.write_text(text.replace("/var/lib/watchman", f"{tmp_path}/spool"))
    ini.chmod(0o640)
    settings = inifile.load(str(ini))
    assert {name: broker.url for name, broker in settings.brokers.items()} == {
        "3di": "redis://redis:6379/0",
        "lizard": "amqp://guest:guest@rabbitmq:5672//",
    }
    ftp, other = settings.watches.values()
    assert (ftp.path, ftp.rec, ftp.auto_add, ftp.proftpd) == (f"{tmp_path}/ftp", True, True, True)
    assert (other.path, other.rec, other.auto_add) == (f"{tmp_path}/in", False, False)
    [move] = settings.moves.values()
    assert (move.source, move.destination) == (f"{tmp_path}/ftp", f"{tmp_path}/storage")
    assert (move.folders, move.unique) == (("accepted", "rejected"), "always")
    rules = Rules(settings)
    sent = {}
    for name in ("ftp/first/a.csv", "ftp/late/a.csv", "ftp/a.csv", "in/a.txt", "in/a.nc", "a.late"):
        task = rules.task_for(f"{tmp_path}/{name}")
        assert task is not None
        sent[name] = (task.broker, task.task, task.options, task.args, task.kwargs)
    path = ["{path}"]
    assert sent == {
        "ftp/first/a.csv": ("lizard", "a.b", {"priority": 5}, path, {}),
        "ftp/late/a.csv": ("lizard", "a.b", {"expires": 300.0}, path, {}),
        "ftp/a.csv": ("lizard", "a.b", {}, path, {}),
        "in/a.txt": ("lizard", "a.b", {}, path, {}),
        "in/a.nc": ("3di", "c", {}, path, {"of": "{{x}}"}),
        "a.late": ("3di", "d", {}, path, {}),
    }
    assert rules.task_for("/else/a.csv") is None
    assert settings.brokers["3di"].celery["task_routes"] == {"c": {"queue": "single"}}
    assert "0 errors" in run("-c", ini, "check").stdout


def test_each_thing_without_a_counterpart_has_a_note(imported: Imported) -> None:
    text = told(imported(CONFIG, CELERY))
    for note in (
        "it wrote to /var/log/watchman.log",
        "quiet = False has no counterpart",
        "eta = None has no counterpart",
        "ProFTPD = True has become proftpd = yes",
        "The password stands here in clear",
        "Left out: it is below no watch, so nothing was ever moved.\n;[move:elsewhere]",
        "CELERY_WORKER_HIJACK_ROOT_LOGGER is for workers",
        "did you mean CELERY_TASK_SERIALIZER?",
    ):
        assert note in text
    assert "had no order" not in text


#: What a file may say beside WATCHES, and what comes of it.
ODD = {
    "PATTERNS = {'*.a': {'broker': 'b', 'task': 't'}, '*.b': {'broker': 'b', 'task': 'u'}}": (
        "# NOTE: PATTERNS had no order"
    ),
    "PATTERNS = {('*.a', {'broker': 'b', 'task': 't'}), ('*.b', {'broker': 'b', 'task': 'u'})}": (
        "# NOTE: PATTERNS had no order"
    ),
    "PATTERNS = dict(load())": "computed by code, which was not run (line 3: dict(load())). Add",
    "PATTERNS = OrderedDict([('in/*', {'broker': 'b', 'task': 't'}), ('*.c', {'broker': 'b',"
    " 'task': 't'})])": "\n;[task:t]\n;pattern = in/*\n",
    "PATTERNS = [('*.a', {'broker': 'no', 'task': 't'})]": "a broker that is not in BROKERS",
    "PATTERNS = [('*.a', {'broker': 'b', 'task': 't', 'kwargs': {'countdown': 'x'}})]": (
        ";countdown = x"
    ),
    "MOVES = {'/srv/f': '/mnt'}": "the first version moved its files as well",
    "BROKERS['c d'] = 'redis://h'": "[broker:c-d]\nurl = redis://h",
    "BROKERS['c'] = 'redis://:%s@h' % os.environ['REDIS']": "[broker:c]\nurl = redis://:${REDIS}@h",
    "BROKERS['c'] = f'redis://{host()}'": "\n;url = ",
    "BROKERS.update(more)": "tell what it does: line 3: BROKERS.update(more)",
    "from local import *": "tell what it does: line 3: from local import *",
    "PATERNS = {}": "PATERNS meant nothing to the first version",
}


@pytest.mark.parametrize("line", ODD)
def test_what_is_odd_is_told_and_the_rest_is_kept(line: str, imported: Imported) -> None:
    base = "BROKERS = {'b': 'redis://h'}\nWATCHES = [{'path': '/srv/ftp'}]\n"
    base += f"{line}\n"
    if "PATTERNS" not in line:
        base += "PATTERNS = [('*.z', {'broker': 'b', 'task': 'z'})]\n"
    complete = "host()" not in line and "REDIS" not in line and "'no'" not in line
    text = told(imported(base, code=0 if complete and "load()" not in line else 1))
    assert ODD[line] in text
    assert "[watch:ftp]\npath = /srv/ftp\n" in text
    assert "[broker:b]\nurl = redis://h\n" in text


def test_a_file_is_read_and_never_run(tmp_path: Path, imported: Imported) -> None:
    trap = f"import os\nos.mkdir({str(tmp_path / 'run')!r})\n"
    trap += f"WATCHES = [{{'path': os.mkdir({str(tmp_path / 'run')!r})}}]\n"
    assert "Left out of WATCHES" in imported(trap, trap, code=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["\nprint 'x'", "\nx = 0755"])
def test_what_is_no_python_is_told_with_its_line(content: str, imported: Imported) -> None:
    with pytest.raises(ConfigError, match=r"config.py:2: .*; write that line as Python 3 has it"):
        imported(content)


def test_the_command_says_what_it_did_and_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("BROKERS = load()\nPATTERNS = []\n")
    done = run("import-config", tmp_path / "config.py", code=1)
    assert "# NOTE: BROKERS is computed by code, which was not run (line 1: load())" in done.stdout
    assert "watchman import-config: 1 comment to read" in done.stderr
    assert "watchman import-config: still wrong: no [watch:NAME] section" in done.stderr
    assert "none.py: cannot be read" in run("import-config", tmp_path / "none.py", code=2).stderr
    assert "--socket is not for" in run("--socket", "/x", "import-config", "y", code=2).stderr

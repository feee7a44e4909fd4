"""What README and the example say is true: it loads, renders, and names what is there."""

import ast
import configparser
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import docutils.core
import docutils.nodes
import pytest

from tests.servers.brokers import ROOT
from watchman.config import inifile
from watchman.config.sections import SECTIONS

README = ROOT / "README.rst"
EXAMPLE = ROOT / "watchman.ini.example"


def parse(file: Path) -> docutils.nodes.document:
    """The parsed document; whatever docutils would warn about is an error."""
    settings = {"halt_level": 2, "report_level": 2, "file_insertion_enabled": False}
    document: docutils.nodes.document = docutils.core.publish_doctree(
        file.read_text(), source_path=str(file), settings_overrides=settings
    )
    return document


def snippets(language: str) -> Iterator[str]:
    for block in parse(README).findall(docutils.nodes.literal_block):
        if language in block["classes"]:
            yield block.astext()


@pytest.fixture
def redis_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "secret")


@pytest.mark.parametrize(
    "name", ["README.rst", "CHANGES.rst", "CONTRIBUTING.rst", "docs/metrics.rst"]
)
def test_a_document_renders_without_a_warning(name: str) -> None:
    assert list(parse(ROOT / name).findall(docutils.nodes.title))


@pytest.mark.usefixtures("redis_password")
def test_the_snippets_of_the_readme_together_make_an_ini_file(tmp_path: Path) -> None:
    ini = tmp_path / "watchman.ini"
    ini.write_text("\n\n".join(snippets("ini")))
    settings = inifile.load(str(ini))
    assert list(settings.brokers) == ["fast", "trial"]
    assert [task.name for task in settings.tasks] == ["events", "tables"]
    assert settings.brokers["fast"].url == "redis://:secret@redis.example.org:6379/0"


def test_the_readme_shows_every_kind_of_section() -> None:
    text = "\n".join(snippets("ini"))
    shown = {match.partition(":")[0] for match in re.findall(r"^\[(.+)\]$", text, re.M)}
    assert shown == set(SECTIONS)


def test_the_example_loads_as_it_stands(tmp_path: Path) -> None:
    ini = shutil.copy(EXAMPLE, tmp_path)
    settings = inifile.load(str(ini))
    assert settings.spool == f"{tmp_path}/var/spool"
    assert [watch.path for watch in settings.watches.values()] == [f"{tmp_path}/var/incoming"]


def test_each_option_that_the_example_comments_out_is_one(tmp_path: Path) -> None:
    """All but settings files, which are not there, and what excludes `queue`."""
    text = re.sub(r"^;(?!config|exchange|routing_key)", "", EXAMPLE.read_text(), flags=re.M)
    ini = tmp_path / "watchman.ini"
    ini.write_text(text)
    assert inifile.load(str(ini)).drain == 10.0


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    commands = re.findall(r"^    make ([a-z-]+)$", README.read_text(), re.M)
    assert commands == ["run", "test"]
    assert set(commands) <= set(targets)


def test_what_is_executable_can_be_executed() -> None:
    for name in (".ci/run", ".ci/install-debian", ".ci/make-environment"):
        assert os.access(ROOT / name, os.X_OK), name


def texts() -> str:
    """All strings in our sources, those that are written in pieces joined."""
    files = [*(ROOT / "watchman").rglob("*.py"), ROOT / "proftpd/watchman-hook"]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return "\n".join(text for text in constants if isinstance(text, str))


def test_each_message_that_the_readme_explains_is_one_of_ours() -> None:
    [table] = [
        table
        for table in parse(README).findall(docutils.nodes.table)
        if "symptoms" in table["classes"]
    ]
    rows = list(table.findall(docutils.nodes.row))[1:]
    assert len(rows) > 10
    said = [literal.astext() for row in rows for literal in row[1].findall(docutils.nodes.literal)]
    assert len(said) > 10
    everything = texts()
    assert [text for text in said if text not in everything] == []


def test_the_readme_makes_the_same_directory_in_run_as_tmpfiles_does() -> None:
    text = (ROOT / "proftpd/watchman.tmpfiles").read_text()
    [line] = [line for line in text.splitlines() if not line.startswith("#")]
    kind, path, mode, user, group, age = line.split()
    assert (kind, age) == ("d", "-")
    assert f"install -d -o {user} -g {group} -m {mode.lstrip('0')} {path}\n" in README.read_text()


def test_supervisord_is_told_the_same_on_a_server_as_in_a_checkout() -> None:
    """But for who runs it, from where, and its log."""
    [server] = [text for text in snippets("sh") if "[program:watchman]" in text]
    [section] = re.findall(r"<<'END'\n(.*?)^END$", server, re.M | re.S)
    there, here = configparser.RawConfigParser(), configparser.RawConfigParser()
    there.read_string(section)
    here.read(ROOT / "supervisord.conf")
    ours = dict(here["program:watchman"])
    differ = {name for name, value in there["program:watchman"].items() if ours.get(name) != value}
    assert differ == {"command", "directory", "user", "environment", "umask", "stdout_logfile"}

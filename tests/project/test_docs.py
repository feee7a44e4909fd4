"""What README, docs/ and the example say is true: it loads, renders, and names what is there."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docutils.core
import docutils.nodes
import docutils.parsers.rst.roles
import pytest

from tests.servers.brokers import ROOT
from watchman.config import inifile
from watchman.config.sections import SECTIONS, SINGLE

README = ROOT / "README.rst"
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "watchman.ini.example"

#: What README has room for: the first ten minutes.
LINES_OF_README = 250

# Sphinx's, whose links do not matter here.
docutils.parsers.rst.roles.register_generic_role("doc", docutils.nodes.emphasis)


def parse(file: Path) -> docutils.nodes.document:
    """The parsed document; whatever docutils would warn about is an error."""
    settings = {"halt_level": 2, "report_level": 2}
    document: docutils.nodes.document = docutils.core.publish_doctree(
        file.read_text(), source_path=str(file), settings_overrides=settings
    )
    return document


def snippets(language: str) -> Iterator[str]:
    """From the pages that say how to write the INI file."""
    for name in ("configuring.rst", "moving.rst"):
        for block in parse(DOCS / name).findall(docutils.nodes.literal_block):
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


def test_the_readme_is_for_the_first_ten_minutes() -> None:
    assert len(README.read_text().splitlines()) <= LINES_OF_README


def test_the_readme_links_to_files_that_are_there() -> None:
    links = [link["refuri"] for link in parse(README).findall(docutils.nodes.reference)]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).is_file()] == []


def built(builder: str, directory: Path) -> Path:
    """As `make docs` does it, but for the place."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", builder]
    done = subprocess.run([*command, DOCS, directory], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return directory


def test_sphinx_builds_every_page_without_a_warning(tmp_path: Path) -> None:
    contents = (built("html", tmp_path) / "index.html").read_text()
    for page in DOCS.glob("*.rst"):
        assert f'href="{page.stem}.html"' in contents or page.stem == "index"


def test_the_manual_of_the_ini_file_has_every_option_and_its_default(tmp_path: Path) -> None:
    roff = (built("man", tmp_path) / "watchman.ini.5").read_text()
    text = re.sub(r"\\(f[BP]|&)", "", roff)
    for kind, options in SECTIONS.items():
        _, beginning, rest = re.split(rf"\.SS (\[{kind}[:\]].*)", text)
        assert beginning == (f"[{kind}]" if kind in SINGLE else f"[{kind}:NAME]")
        section = rest.partition(".SS")[0]
        assert set(options) <= set(re.findall(r"^\.B (\w+)$", section, re.M)), kind
    assert re.search(r"^\.B rescan\n.*?^A duration\. Default: 1h\.$", text, re.M | re.S)
    assert "One of accept, hold. Default: accept." in text


@pytest.mark.usefixtures("redis_password")
def test_the_snippets_together_make_an_ini_file(tmp_path: Path) -> None:
    ini = tmp_path / "watchman.ini"
    ini.write_text("\n\n".join(snippets("ini")))
    settings = inifile.load(str(ini))
    assert list(settings.brokers) == ["fast", "trial"]
    assert [task.name for task in settings.tasks] == ["events", "tables"]
    assert settings.brokers["fast"].url == "redis://:secret@redis.example.org:6379/0"


def test_the_snippets_show_every_kind_of_section() -> None:
    text = "\n".join(snippets("ini"))
    shown = {match.partition(":")[0] for match in re.findall(r"^\[(.+)\]$", text, re.M)}
    assert shown == set(SECTIONS)


def test_the_example_loads_as_it_stands(tmp_path: Path) -> None:
    ini = shutil.copy(EXAMPLE, tmp_path)
    settings = inifile.load(str(ini))
    assert settings.spool == f"{tmp_path}/var/spool"
    assert [watch.path for watch in settings.watches.values()] == [f"{tmp_path}/var/incoming"]


def test_each_option_that_the_example_comments_out_is_one(tmp_path: Path) -> None:
    """All but files, which are not there, and what excludes `queue`."""
    text = re.sub(
        r"^;(?!config|exchange|routing_key|url_file|token_file)",
        "",
        EXAMPLE.read_text(),
        flags=re.M,
    )
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


def test_each_message_that_is_explained_is_one_of_ours() -> None:
    [table] = [
        table
        for table in parse(DOCS / "troubleshooting.rst").findall(docutils.nodes.table)
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
    there, here = configparser.RawConfigParser(), configparser.RawConfigParser()
    there.read(DOCS / "share/supervisor/watchman.supervisor")
    here.read(ROOT / "supervisord.conf")
    ours = dict(here["program:watchman"])
    differ = {name for name, value in there["program:watchman"].items() if ours.get(name) != value}
    assert differ == {"command", "directory", "user", "environment", "umask", "stdout_logfile"}

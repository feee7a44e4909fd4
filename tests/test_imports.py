"""Which module may import which, as CONTRIBUTING.rst says it; read from the sources."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.brokers import ROOT

PACKAGE = ROOT / "watchman"

#: What decides and remembers, between sources and sinks.
INSIDE = {
    *("dispatcher", "judge", "held", "pipeline", "backlog", "journal", "groupcommit", "ledger"),
    *(
        "segments",
        "ledgerfile",
        "positions",
        "decisions",
        "endings",
        "marks",
        "failures",
        "whereabouts",
        "renames",
        "byhand",
        "ledgers",
        "heirs",
    ),
    *("unsettled", "interventions", "resubmissions", "pauses", "stories", "inbox"),
}

#: Who wires all of it up, and answers for all of it.
WIRING = {"daemon", "control", "reload", "overview"}

#: Libraries, and the only modules or packages that may import them.
EDGES = {
    "pyinotify": {"sources"},
    "configparser": {"config"},
    "celery": {"sinks", "celery_settings", "demo"},
    "kombu": {"sinks", "celery_settings"},
    "amqp": {"sinks"},
    "redis": {"sinks"},
}


def modules() -> dict[str, Path]:
    """Our modules, without the package's name: `upload`, `sources.listener`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    del found[""]
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The full names of what a module imports, wherever in it; of a name in a module, both."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(module: str) -> set[str]:
    """The modules of ours that a module imports."""
    names = {name.removeprefix("watchman.") for name in imports(MODULES[module])}
    return (names & MODULES.keys()) - {"sources", "sinks", "commands", "demo"}


GRAPH = {module: ours(module) for module in MODULES}


def below(*modules: str) -> set[str]:
    """All that these import, and what that imports, and so on."""
    found: set[str] = set()
    waiting = set(modules)
    while waiting:
        found |= waiting
        waiting = set().union(*(GRAPH[module] for module in waiting)) - found
    return found


def package(name: str) -> set[str]:
    """The modules of a package, or the module of that name."""
    return {module for module in MODULES if module == name or module.startswith(f"{name}.")}


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_import_is_for_type_checking_only() -> None:
    """It would hide a circle; the type belongs further down instead."""
    for module, path in MODULES.items():
        assert "typing.TYPE_CHECKING" not in set(imports(path)), module


def test_sources_know_nothing_of_what_is_made_of_their_notifications() -> None:
    known = below(*package("sources"))
    assert {"upload", "sources.listener"} <= known
    assert not known & (INSIDE | package("sinks") | package("commands") | WIRING)


def test_sinks_know_nothing_of_where_uploads_come_from() -> None:
    known = below(*package("sinks"))
    assert {"upload", "sinks.publisher"} <= known
    assert not known & (INSIDE | package("sources") | package("commands") | WIRING)


def test_what_decides_knows_no_source_no_sink_and_no_command() -> None:
    known = below(*(INSIDE & MODULES.keys()))
    assert "upload" in known
    others = package("sources") | package("sinks") | package("commands") | WIRING
    assert not known & others


def test_values_know_nothing() -> None:
    """Everyone imports them."""
    for module in ("upload", "settings", "errors"):
        assert below(module) <= {"upload", "settings", "errors"}, module


def test_only_commands_import_commands() -> None:
    for module in MODULES.keys() - package("commands") - {"__main__"}:
        assert not GRAPH[module] & package("commands"), module


def test_no_command_but_run_waits_for_the_daemon_to_be_imported() -> None:
    # What a line of the transfer log looks like is pure: `check` compares LogFormat with it.
    parts = (INSIDE | package("sources") | WIRING) - {"sources.logrecord"}
    for module in package("commands") - {"commands.run", "commands.main"}:
        assert not below(module) & parts, module
    [late] = [line for line in importing("commands.run") if "watchman.daemon" in line]
    assert late.startswith("    "), "only where the command is executed"


def importing(module: str) -> list[str]:
    """The lines of a module that import something."""
    lines = MODULES[module].read_text().splitlines()
    return [line for line in lines if line.lstrip().startswith(("import ", "from "))]


@pytest.mark.parametrize("library", EDGES)
def test_a_library_is_kept_at_the_edge(library: str) -> None:
    allowed = set().union(*(package(name) for name in EDGES[library]))
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name in imports(path))
    }
    assert users <= allowed

"""Which module may import which, as CONTRIBUTING.rst says it; read from the sources."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT

PACKAGE = ROOT / "watchman"

#: Which folder may import which others; a folder is named with the one that holds it.
MAY_IMPORT = {
    "errors": set(),
    "uploads": {"errors"},
    "config": {"uploads", "errors"},
    "sources.socket": {"uploads", "config", "errors"},
    "sources.scan": {"uploads", "config", "errors"},
    "sources.inotify": {"sources.scan", "uploads", "config", "errors"},
    "sources.transferlog": {"sources.inotify", "uploads", "config", "errors"},
    "sources": {
        *("sources.scan", "sources.inotify", "sources.transferlog"),
        *("uploads", "config", "errors"),
    },
    "store": {"uploads", "config", "errors"},
    "sinks": {"store", "uploads", "config", "errors"},
    "sinks.moving": {"sinks", "uploads", "config", "errors"},
    "sinks.publishing": {"sinks", "uploads", "config", "errors"},
    "dispatch": {"sinks", "store", "uploads", "config", "errors"},
    "operate.metrics": {"sinks", "uploads", "config", "errors"},
    "operate": {
        "operate.metrics",
        *("dispatch", "sinks", "sinks.moving", "sources", "sources.socket"),
        *("store", "uploads", "config", "errors"),
    },
    "daemon": {
        *("operate", "operate.metrics", "dispatch", "sinks", "sinks.moving", "sinks.publishing"),
        *("sources", "sources.socket", "store", "uploads", "config", "errors"),
    },
    "commands.shared": {"sources.socket", "sinks.publishing", "uploads", "config", "errors"},
    "commands.check": {
        *("commands.screens", "commands.shared", "sinks.moving", "sinks.publishing"),
        *("sources.transferlog",),
        *("uploads", "config", "errors"),
    },
    "commands.screens": {"commands.shared", "uploads"},
    "commands": {
        *("commands.check", "commands.importing", "commands.screens", "commands.shared"),
        *("daemon", "uploads", "config", "errors"),
    },
    "commands.importing": {"commands.shared", "uploads", "config", "errors"},
    "demo": {"config", "errors"},
    "worker": {"uploads"},
    "__main__": {"commands"},
}

#: Modules that others than their folder's neighbours may import, where these may not import all.
ONLY = {
    "sinks.moving": {"sinks": {"sinks.sink"}},
    "sinks.publishing": {"sinks": {"sinks.sink"}},
    "commands.shared": {"sources.socket": {"sources.socket.wire"}},
    "commands.screens": {"commands.shared": {"commands.shared.phrases"}},
    "commands.check": {
        "sources.transferlog": {"sources.transferlog.lines"},
        "sinks.moving": {"sinks.moving.rights"},
    },
    "operate": {"sinks.moving": {"sinks.moving.forbidden"}},
    "sources.transferlog": {"sources.inotify": {"sources.inotify.events"}},
    "worker": {"uploads": {"uploads.renaming"}},
    "operate.metrics": {"sinks": {"sinks.steps"}},
}

#: Libraries, and the only modules or folders that may import them.
EDGES = {
    "pyinotify": {"sources.inotify"},
    "configparser": {"config"},
    "celery": {"sinks.publishing", "config.celery_settings", "demo", "worker"},
    "kombu": {"sinks.publishing", "config.celery_settings"},
    "amqp": {"sinks.publishing"},
    "redis": {"sinks.publishing"},
    "rich": {"commands.screens"},
    "prometheus_client": {"operate.metrics"},
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
    return (names & MODULES.keys()) - FOLDERS


FOLDERS = {".".join(path.relative_to(PACKAGE).parts[:-1]) for path in PACKAGE.rglob("*.py")}
GRAPH = {module: ours(module) for module in MODULES}


def folder(module: str) -> str:
    """The folder that a module is in, or its own name where it is in none."""
    return module if module in FOLDERS else module.rpartition(".")[0] or module


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


@pytest.mark.parametrize("name", sorted({folder(module) for module in MODULES}))
def test_a_folder_imports_what_it_may(name: str) -> None:
    only = ONLY.get(name, {})
    for module in MODULES:
        if folder(module) == name:
            for other in GRAPH[module]:
                there = folder(other)
                assert there in MAY_IMPORT[name] | {name}, f"{module} imports {other}"
                assert other in only.get(there, {other}), f"{module} imports {other}"


def test_the_folders_are_few_and_each_says_what_it_is_for() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert len(entries) <= 12, sorted(entries)
    for name in FOLDERS - {""}:
        inside = [module for module in MODULES if folder(module) == name and module != name]
        assert len(inside) <= 13, f"{name}: {len(inside)} modules"
        text = ast.get_docstring(ast.parse(MODULES[name].read_text()))
        assert text, name


def test_no_command_but_run_waits_for_the_daemon_to_be_imported() -> None:
    parts = {m for m in MODULES if folder(m) in {"dispatch", "store", "operate", "daemon"}}
    for module in package("commands") - {"commands.run"}:
        assert not below(module) & parts, module


def test_no_command_waits_for_another_to_be_imported() -> None:
    commands = {
        m for m in MODULES if folder(m) in {"commands", "commands.check", "commands.importing"}
    }
    for module in ("commands.main", "commands.send"):
        assert below(module) & commands == {module}


@pytest.mark.parametrize("library", EDGES)
def test_a_library_is_kept_at_the_edge(library: str) -> None:
    allowed = set().union(*(package(name) for name in EDGES[library]))
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name in imports(path))
    }
    assert users <= allowed

"""Reads Celery settings from a Python file or module, such as a worker's `celeryconfig`."""

import ast
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from watchman.config import celery_settings, options, trusted

#: Names that the first version of watchman read from its config.py.
_FIRST_VERSION = frozenset({"BROKERS", "WATCHES", "PATTERNS", "MOVES", "ProFTPD"})

#: The setting for workers that use `watchman.worker`.
_WORKERS = frozenset({"watchman_done_file"})

#: A name that the settings of every Django project have. There all of Celery's settings begin with
#: CELERY_, and most other names are not Celery's.
_DJANGO = "INSTALLED_APPS"


class CeleryFile(NamedTuple):
    """A settings file: its settings under their lowercase names, and what it seems to get wrong."""

    settings: dict[str, Any]
    warnings: tuple[str, ...]


def load(name: str, directory: str) -> CeleryFile:
    """The path of a Python file, or the name of a module.

    Runs it, and returns its settings under their lowercase names, whatever their values are. A name
    that has a slash or ends with `.py` is a path, taken from `directory`. Any other is a module,
    looked for in `directory` first. The settings that say where the broker is are left out, because
    they are meant for the worker. Raises ValueError, with file and line if the file is wrong.
    """
    is_path = "/" in name or name.endswith(".py")
    file = options.path(name, directory) if is_path else _module_file(name, directory)
    content = _content(file) if file else b""
    if is_path:
        directory = os.path.dirname(file)
    with _importing_from(directory, name if file else ""):
        try:
            module = _run(file, content) if is_path else importlib.import_module(name)
        # The file may raise anything, even SystemExit. All of that is an error in the file.
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                what = f"no module {error.name} in {directory} or on Python's path"
                raise ValueError(what) from error
            raise ValueError(_complaint(error, file, directory)) from error
    return CeleryFile(_settings(vars(module)), tuple(_warnings(vars(module), content)))


def unknown(name: str) -> str:
    """Return a message about a name that Celery does not know, "" if the name may be right.

    Celery accepts any lowercase name, because programs may have settings of their own.
    """
    if name in _FIRST_VERSION:
        return f"{name} is of the first version's config.py; watchman import-config reads that"
    if name.startswith("_") or name in _WORKERS or celery_settings.current_name(name):
        return ""
    known = celery_settings.types() if name.islower() else celery_settings.spellings()
    hint = options.close_to(name, known)
    return f"{name} is no setting of Celery's{hint}" if hint or name.isupper() else ""


def _warnings(values: Mapping[str, Any], content: bytes) -> Iterator[str]:
    # A name that the file itself uses is no setting. Nor is one that it has imported or defined.
    nodes = ast.walk(ast.parse(content)) if content else ()
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    for name, value in values.items():
        if name in used or isinstance(value, ModuleType) or callable(value):
            continue
        if _DJANGO in values and not name.startswith("CELERY_"):
            continue
        if what := unknown(name):
            yield what


def _module_file(name: str, directory: str) -> str:
    """Return the file of module `name` in `directory`, "" if there is none."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError("give the path of a Python file (celeryconfig.py) or the name of a module")
    whole = os.path.join(directory, *name.split("."))
    candidates = (os.path.join(whole, "__init__.py"), whole + ".py")
    return next(filter(os.path.isfile, candidates), "")


def _content(file: str) -> bytes:
    try:
        return trusted.read(file)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error


def _run(file: str, content: bytes) -> ModuleType:
    module = ModuleType(os.path.basename(file).removesuffix(".py"))
    module.__file__ = file
    exec(compile(content, file, "exec"), vars(module))
    return module


@contextmanager
def _importing_from(directory: str, name: str) -> Iterator[None]:
    """Let imports look in `directory` first; forget afterwards the modules that came from there.

    So each of two brokers may have its own `celeryconfig`, and a reload reads the files again.
    `name` is the module that is about to be imported from there. Loaded modules of that name, with
    those above and below it, are put aside meanwhile.
    """
    path, modules, writes_none = sys.path[:], dict(sys.modules), sys.dont_write_bytecode
    for loaded in modules:
        if loaded == name or loaded.startswith(f"{name}.") or f"{name}.".startswith(f"{loaded}."):
            del sys.modules[loaded]
    sys.path.insert(0, directory)
    # Python knows old bytecode by the source's size and its mtime in whole seconds (PEP 552). After
    # a quick edit a reload could take the old one.
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = writes_none
        for loaded, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if loaded not in modules and file.startswith(os.path.join(directory, "")):
                del sys.modules[loaded]
        sys.modules.update(modules)


def _complaint(error: BaseException, file: str, directory: str) -> str:
    """Return what went wrong, and the line of the settings file rather than of what it calls."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(os.path.join(directory, ""))]
    place = f"{ours[-1].filename}:{ours[-1].lineno}" if ours else file or frames[-1].filename
    return f"{place}: {type(error).__name__}: {error}"


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Celery settings among a module's names, under their present lowercase names."""
    settings: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, value in values.items():
        setting = celery_settings.current_name(name)
        if setting is None or setting not in celery_settings.types():
            continue
        if isinstance(value, ModuleType):  # as from `import celery.schedules as beat_schedule`
            continue
        if setting in settings:
            raise ValueError(f"{spelled[setting]} and {name} are one setting; keep one of them")
        settings[setting], spelled[setting] = value, name
    return settings

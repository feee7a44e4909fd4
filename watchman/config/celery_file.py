"""Celery settings from a Python file or module, as a worker's `celeryconfig`."""

import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from watchman.config import celery_settings, options, trusted


def load(name: str, directory: str) -> dict[str, Any]:
    """The path of a Python file, or the name of a module.

    Returns its settings under their lowercase names, whatever their values are. A name with a slash
    or `.py` in it is a path, taken from `directory`; any other is a module, looked for in
    `directory` first. The settings that say where the broker is are left out, because they are
    meant for the worker. Raises ValueError, with file and line for what goes wrong in the file.
    """
    is_path = "/" in name or name.endswith(".py")
    file = options.path(name, directory) if is_path else _module_file(name, directory)
    content = _content(file) if file else b""
    if is_path:
        directory = os.path.dirname(file)
    with _importing_from(directory, name if file else ""):
        try:
            module = _run(file, content) if is_path else importlib.import_module(name)
        # Whatever the file does, down to sys.exit(), is an error in the file.
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                what = f"no module {error.name} in {directory} or on Python's path"
                raise ValueError(what) from error
            raise ValueError(_complaint(error, file, directory)) from error
    return _settings(vars(module))


def _module_file(name: str, directory: str) -> str:
    """The file of module `name` in `directory`, empty if it is not there."""
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
    """Let imports look in `directory` first, and forget afterwards what came from there.

    So two brokers may each have a `celeryconfig` of their own, and a reload sees new content.
    `name` is the module about to be imported from there, though another may bear its name.
    """
    path, modules, writes_none = sys.path[:], dict(sys.modules), sys.dont_write_bytecode
    for loaded in modules:
        if loaded == name or loaded.startswith(f"{name}.") or f"{name}.".startswith(f"{loaded}."):
            del sys.modules[loaded]
    sys.path.insert(0, directory)
    # Bytecode is compared with its source by size and seconds: a reload could trust an old one.
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
    """Where in the settings, rather than in what they call, and what."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(os.path.join(directory, ""))]
    place = f"{ours[-1].filename}:{ours[-1].lineno}" if ours else file or frames[-1].filename
    return f"{place}: {type(error).__name__}: {error}"


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, value in values.items():
        setting = celery_settings.current_name(name)
        if setting is None or setting not in celery_settings.types():
            continue
        if isinstance(value, ModuleType):  # import celery.schedules as beat_schedule, ...
            continue
        if setting in settings:
            raise ValueError(f"{spelled[setting]} and {name} are one setting; keep one of them")
        settings[setting], spelled[setting] = value, name
    return settings

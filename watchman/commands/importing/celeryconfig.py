"""Turns the settings of a `celeryconfig.py` into options of `[celery]`."""

from __future__ import annotations

from typing import Any

from watchman.commands.importing.conversion import as_json
from watchman.commands.importing.draft import Draft, Section
from watchman.commands.importing.literals import Environment, Opaque, Pairs, Written
from watchman.config import celery_file, celery_settings

#: How settings begin that are for workers and for celery beat. They mean nothing to a program that
#: only sends tasks.
_OTHERS = ("worker_", "beat_")


def convert(written: Written, path: str, draft: Draft) -> None:
    section = draft.add("celery")
    for name, value in written.values.items():
        if name.startswith("_"):
            continue
        current = celery_settings.current_name(name)
        if current is not None:
            _setting(section, name, current, value, path)
        elif name not in written.used and (hint := celery_file.unknown(name)):
            section.notes.append(hint if hint.endswith("?") else f"{hint}.")
    for other in written.others:
        what = "Not taken over, because only running it could tell what it does"
        section.notes.append(f"{what}: {other}.")


def _setting(section: Section, name: str, current: str, value: Any, path: str) -> None:
    if current.startswith(_OTHERS):
        section.notes.append(f"{name} is for workers. watchman only sends tasks.")
        return
    if isinstance(value, Opaque | Environment):
        hint = f"Write config = {path} to have the daemon run the file, if its user may read it"
        section.notes.append(f"{name} is computed by code, which was not run ({value}). {hint}.")
        return
    match value:
        case bool():
            text = "yes" if value else "no"
        case Pairs() | list():
            text = as_json(value)
        case None:
            return
        case _:
            text = str(value)
    if text:
        section.set(current, text)
    else:
        hint = f"Write config = {path} to have the daemon run the file, if its user may read it"
        section.notes.append(f"{name} cannot be written here. {hint}.")

"""Turns the first version's `config.py` into sections of an INI file."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from watchman.commands.importing.draft import Draft, Section
from watchman.commands.importing.literals import Environment, Opaque, Pairs, Written, pairs
from watchman.config import options
from watchman.uploads.beneath import is_below

#: The names that the first version read from its file.
READ = ("BROKERS", "WATCHES", "PATTERNS", "MOVES", "ProFTPD", "LOGGING")

#: Options of send_task that `[task:NAME]` has under the same name.
SEND = (
    *("queue", "exchange", "routing_key", "priority"),
    *("expires", "countdown", "time_limit", "soft_time_limit"),
)

#: The note about `ProFTPD = True`.
_PROFTPD = (
    "ProFTPD = True has become proftpd = yes, which means more: watchman waits up to 10 seconds for"
    " ProFTPD's word about each upload, and so learns which uploads have failed. Set up hooks or"
    " the transfer log for that (watchman.conf), or write proftpd = no. New directories are watched"
    " in either case."
)


def convert(written: Written, draft: Draft) -> None:
    """Add a section for each thing that has a counterpart, and a note for each that has none."""
    _watchman(written, draft)
    brokers = _brokers(written, draft)
    watches = list(_watches(written, draft))
    _moves(written, draft, watches)
    _tasks(written, draft, brokers)


def remarks(written: Written, draft: Draft) -> None:
    """Add notes about what the file says beside the things that `convert` looks for."""
    for name in READ[:4]:
        if isinstance(value := written.values.get(name), Opaque):
            what = f"{name} is computed by code, which was not run ({value})"
            draft.notes.append(f"{what}. Add its sections by hand.")
    for name, value in written.values.items():
        if name not in (*READ, *written.used) and not name.startswith("_"):
            what = f" ({value})" if isinstance(value, Opaque) else ""
            draft.notes.append(f"{name} meant nothing to the first version{what}.")
    for other in written.others:
        what = "Not taken over, because only running it could tell what it does"
        draft.notes.append(f"{what}: {other}.")


def _watchman(written: Written, draft: Draft) -> None:
    section = draft.add("watchman")
    section.set("spool", "/var/lib/watchman")
    if "LOGGING" in written.values:
        note = "LOGGING: log_file, log_level and log_format take its place"
        logging = written.values["LOGGING"]
        handlers = pairs(logging.items.get("handlers")) if isinstance(logging, Pairs) else None
        for handler in (handlers.items if handlers else {}).values():
            file = handler.items.get("filename") if isinstance(handler, Pairs) else None
            if isinstance(file, str):
                note += f"; it wrote to {file}, which logrotate rotates now"
        section.notes.append(f"{note}.")


def _brokers(written: Written, draft: Draft) -> dict[str, str]:
    """Add a section for each broker. Return the names of the sections by the brokers' old names."""
    names = {}
    for name, url in _items(written, "BROKERS", draft):
        section = draft.add("broker", name)
        names[name] = section.name
        if section.name != name:
            section.notes.append(f"A section cannot have the name {name!r}.")
        if not isinstance(url, str):
            section.notes.append(f"Fill in its url, which is not plain text: {url}.")
            section.options.append((";url", "amqp://USER:${PASSWORD}@HOST:5672/VHOST"))
        elif isinstance(url, Environment):
            # Not checked by `set`, because the variable must be set for the daemon, not for us.
            section.options.append(("url", url))
            section.notes.append("Set the variable in ${...} in the daemon's environment.")
        else:
            section.set("url", url.replace("$", "%24") if "${" in url else url)
            if ":" in url.rpartition("@")[0].partition("://")[2]:
                what = "The password stands here in clear: chmod o= this file, or write ${NAME}"
                section.notes.append(f"{what} and set NAME in the daemon's environment.")
    return names


def _watches(written: Written, draft: Draft) -> Iterator[str]:
    """Add a section for each watched path, and yield the path."""
    if proftpd := written.values.get("ProFTPD", False):
        unsure = ""
        if isinstance(proftpd, Opaque):
            unsure = f"ProFTPD is computed by code, which was not run ({proftpd}). "
        draft.notes.append(unsure + _PROFTPD)
    found = written.values.get("WATCHES", [])
    for watch in found if isinstance(found, list) else []:
        if not isinstance(watch, Pairs):
            draft.notes.append(f"Left out of WATCHES, because it is not a dictionary: {watch}.")
            continue
        paths = watch.items.get("path")
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str) and not isinstance(path, Environment):
                _watch(written, draft, path, watch.items)
                yield path
            else:
                what = "Left out of WATCHES, because its path is not plain text"
                draft.notes.append(f"{what}: {path}.")


def _watch(written: Written, draft: Draft, path: str, said: Mapping[str, Any]) -> None:
    section = draft.add("watch", os.path.basename(path.rstrip("/")) or "root")
    section.set("path", path)
    if not os.path.isabs(path):
        section.notes.append(f"{path} is relative to the directory of this file now.")
    for option in ("rec", "auto_add"):
        # pyinotify's default is no, ours is yes.
        section.set(option, "yes" if said.get(option, False) else "no")
        if isinstance(value := said.get(option), Opaque):
            what = f"{option} is computed by code, which was not run ({value})"
            section.notes.append(f"{what}. Is yes right?")
    for option in said.keys() - {"path", "rec", "auto_add"}:
        hint = "; see exclude" if option == "exclude_filter" else ""
        section.notes.append(f"{option} = {said[option]} has no counterpart{hint}.")
    if written.values.get("ProFTPD", False):
        section.set("proftpd", "yes")


def _moves(written: Written, draft: Draft, watches: list[str]) -> None:
    for source, destination in _items(written, "MOVES", draft):
        section = draft.add("move", os.path.basename(source.rstrip("/")) or "root")
        section.set("source", source)
        if isinstance(destination, str) and not isinstance(destination, Environment):
            section.set("destination", destination)
        else:
            section.notes.append(
                f"Fill in its destination, which is not plain text: {destination}."
            )
            section.options.append((";destination", "/DIRECTORY"))
        section.set("folders", "accepted, rejected")
        section.set("unique", "always")
        if not any(is_below(source, watch) or is_below(watch, source) for watch in watches):
            section.drop("it is below no watch, so nothing was ever moved.")
        for watch in watches:
            if watch.startswith(source) and not is_below(watch, source):
                section.notes.append(
                    f"{watch} begins with {source}, so the first version moved its files as well."
                    " That takes a section of its own now."
                )


def _tasks(written: Written, draft: Draft, brokers: Mapping[str, str]) -> None:
    patterns = list(_items(written, "PATTERNS", draft))
    held = pairs(written.values.get("PATTERNS"))
    if held and not held.ordered and len(patterns) > 1:
        draft.notes.append(
            "PATTERNS had no order, because a plain dict of that time had none. Here the first"
            " [task:...] that matches a file wins: put the most specific ones first."
        )
    for _, group in itertools.groupby(patterns, lambda item: (_can_match(item[0]), repr(item[1]))):
        same = list(group)
        _task(draft, [pattern for pattern, _ in same], same[0][1], brokers)


def _can_match(pattern: str) -> bool:
    try:
        options.patterns(pattern)
    except ValueError:
        return False
    return True


def _task(draft: Draft, patterns: list[str], said: Any, brokers: Mapping[str, str]) -> None:
    values = said.items if isinstance(said, Pairs) else {}
    task, broker = values.get("task"), values.get("broker")
    section = draft.add("task", task.rpartition(".")[2] if isinstance(task, str) else "task")
    # With more than one, each takes a line of its own.
    section.set("pattern", patterns[0] if len(patterns) == 1 else "\n".join(["", *patterns]))
    for option, value in (("broker", brokers.get(str(broker), broker)), ("task", task)):
        if isinstance(value, str):
            section.set(option, value)
    sent = values.get("kwargs", Pairs({}))
    for option, value in (sent.items if isinstance(sent, Pairs) else {}).items():
        _send_option(section, option, value)
    for option in values.keys() - {"task", "broker", "kwargs"}:
        section.notes.append(f"{option} = {values[option]} meant nothing to the first version.")
    if not isinstance(sent, Pairs):
        section.notes.append(f"Its options are not a dictionary: {sent}.")
    if section.options[0][0] != "pattern":
        section.drop("it can match no file.")
    elif not isinstance(said, Pairs):
        section.drop(f"its value is not a dictionary: {said}.")
    elif broker not in brokers or not isinstance(task, str):
        section.drop("it has no task, or a broker that is not in BROKERS: it was never sent.")


def _send_option(section: Section, option: str, value: Any) -> None:
    if option == "kwargs" and (text := as_json(value, braces=True)):
        section.set("kwargs", text)
    elif option in SEND and isinstance(value, str | int | float) and value is not None:
        section.set(option, str(value))
    else:
        hint = {"serializer": "; write task_serializer in [celery] or [broker:NAME]"}.get(
            option, ""
        )
        section.notes.append(f"{option} = {value} has no counterpart{hint}.")


def as_json(value: Any, *, braces: bool = False) -> str:
    """Return a mapping or list as JSON, "" if a part of it is not plain data.

    If `braces`, those in its strings are doubled, as the INI file wants them.
    """

    def plain(part: Any) -> Any:
        match part:
            case Pairs(items=items):
                return {name: plain(one) for name, one in items.items()}
            case list():
                return [plain(one) for one in part]
            case str() if braces:
                return part.replace("{", "{{").replace("}", "}}")
            case str() | int() | float() | None:
                return part
        raise TypeError

    try:
        return json.dumps(plain(value))
    except TypeError:
        return ""


def _items(written: Written, name: str, draft: Draft) -> list[tuple[str, Any]]:
    """Return the items of the mapping that the file assigns to `name`. Note if it is no mapping."""
    value = written.values.get(name, Pairs({}))
    found = pairs(value)
    if found is None and not isinstance(value, Opaque):
        draft.notes.append(f"{name} is not a dictionary. Add its sections by hand.")
    return list(found.items.items()) if found else []

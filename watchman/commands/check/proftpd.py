"""`watchman check --proftpd FILE`: whether ProFTPD tells watchman what it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from watchman.commands.check import proftpd_file, proftpd_hooks, proftpd_log
from watchman.commands.check.findings import Finding, error, ok, warn
from watchman.commands.check.proftpd_file import Configuration, Directive, Server
from watchman.commands.shared.table import count
from watchman.config.rules import Rules
from watchman.config.settings import Settings

SUBJECT = "proftpd"


class Told(NamedTuple):
    """By what ProFTPD tells of uploads."""

    hooks: bool
    log: bool


@dataclass(frozen=True, slots=True)
class Row:
    """What a directive does to what ProFTPD tells, `when` its server is so and tells by such."""

    say: Callable[[str, str], Finding]
    name: str
    text: str
    when: Callable[[Directive, Server, Told], bool]

    def __str__(self) -> str:
        return f"{SHOWN.get(self.name, self.name)}: {self.text}"


def _virtual(server: Server) -> bool:
    """Whether users are locked in by mod_vroot and not by chroot(2), so that hooks run."""
    return server.on("VRootEngine") and not server.all("VRootServerRoot")


def _only_hooks(_one: Directive, server: Server, told: Told) -> bool:
    return told.hooks and not told.log and not _virtual(server)


def _locks_some(one: Directive, server: Server, told: Told) -> bool:
    return _only_hooks(one, server, told) and len(one.values) > 1 and one.values[0] != "/"


def _locks_all(one: Directive, server: Server, told: Told) -> bool:
    return _only_hooks(one, server, told) and len(one.values) == 1 and one.values[0] != "/"


def _bends(_one: Directive, server: Server, _told: Told) -> bool:
    return server.on("VRootEngine")


NO_HOOK = "no hook runs for whom it locks in; use the transfer log"

#: How directives are written whose names are not told as they are compared.
SHOWN = {"anonymous": "<Anonymous>"}

#: Tried with ProFTPD 1.3.8 and mod_vroot 0.9.11; for what they say see watchman.dispatch.placing.
ROWS = (
    Row(error, "DefaultRoot", NO_HOOK, _locks_all),
    Row(warn, "DefaultRoot", NO_HOOK, _locks_some),
    Row(warn, "anonymous", NO_HOOK, _only_hooks),
    Row(
        warn,
        "UserOwner",
        "files are not their session's user's, whose word on them is refused; use the transfer log"
        " as well",
        lambda _one, _server, told: told.hooks,
    ),
    Row(
        warn,
        "ExecEnable",
        "no hook runs there; use the transfer log",
        lambda one, _server, told: (
            told.hooks and not told.log and one.values[:1] in (("off",), ("no",), ("false",))
        ),
    ),
    Row(
        error,
        "VRootEngine",
        "hooks name renames, STOU and all of SFTP by paths below its root, which lead nowhere; use"
        " the transfer log",
        lambda _one, server, told: _virtual(server) and told.hooks and not told.log,
    ),
    Row(
        warn,
        "VRootEngine",
        "the log names renames and STOU by paths below its root: only what their user has uploaded"
        " just before is known again, and hooks cannot say which file a session that dies has"
        " begun; use DefaultRoot without it",
        lambda _one, server, told: _virtual(server) and told.log,
    ),
    Row(
        error,
        "VRootAlias",
        "what is uploaded through it is told of by a path that is not there; use mount --bind",
        _bends,
    ),
    Row(
        error,
        "VRootServerRoot",
        "no hook runs, and renames are told of by paths that lead nowhere; use DefaultRoot without"
        " mod_vroot, and the transfer log",
        _bends,
    ),
)


def check(settings: Settings, file: str) -> Iterator[Finding]:
    """Check a configuration against the INI file; each thing is said once."""
    configuration = proftpd_file.read(file)
    seen = set()
    for finding in _check(settings, configuration):
        if finding not in seen:
            seen.add(finding)
            yield finding


def _check(settings: Settings, configuration: Configuration) -> Iterator[Finding]:
    for place, problem in configuration.problems:
        yield error(SUBJECT, f"{place}: {problem}")
    if not configuration.files:
        return
    hooks = proftpd_hooks.found(configuration)
    yield from proftpd_log.check(settings, configuration)
    yield from proftpd_hooks.check(settings, configuration, hooks)
    log = bool(settings.proftpd.transfer_log)
    for server in configuration.servers():
        for row in ROWS:
            for one in server.all(row.name):
                if row.when(one, server, Told(bool(hooks), log)):
                    yield row.say(SUBJECT, f"{one.place}: {row}")
    for one in configuration.all("HiddenStores"):
        yield from _hidden(settings, one)
    if not any(watch.proftpd for watch in settings.watches.values()):
        text = "no [watch:...] has proftpd = yes, so nothing waits for ProFTPD's word"
        yield warn(SUBJECT, f"{settings.file}: {text}")
    ways = [name for name, way in (("hooks", hooks), ("log", settings.proftpd.transfer_log)) if way]
    yield ok(
        SUBJECT,
        f"{configuration.file} with {count(len(configuration.files) - 1, 'more file')},"
        f" {count(len(configuration.servers()), 'server')}; speaks by"
        f" {' and '.join(ways) or 'nothing'}",
    )


def _hidden(settings: Settings, one: Directive) -> Iterator[Finding]:
    """Names of unfinished uploads that are no hidden ones to watchman."""
    name = hidden_name(one.values, "a.csv")
    if not name:
        return
    rules = Rules(settings)
    for watch in settings.watches.values():
        if rules.excluded(watch, name) is None:
            text = f"HiddenStores makes names as {name!r} of files that are being written"
            prefix = name.partition("a.csv")[0]
            yield error(SUBJECT, f"{one.place}: {text}; [watch:{watch.name}] exclude = {prefix}*")


def hidden_name(values: tuple[str, ...], name: str) -> str:
    """Return what ProFTPD calls a file that is being written, as mod_xfer's set_hiddenstores."""
    prefix, *suffix = values or ("off",)
    if suffix:
        return f"{prefix}{name}{suffix[0]}"
    if prefix.startswith(".") and prefix.endswith("."):
        return f"{prefix}{name}."
    if prefix.lower() in ("off", "no", "false", "0"):
        return ""
    if prefix.lower() in ("on", "yes", "true", "1"):
        return f".in.{name}."
    return f".{prefix}.{name}."

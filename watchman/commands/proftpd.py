"""`watchman check --proftpd FILE`: whether ProFTPD tells watchman what it should."""

from __future__ import annotations

from collections.abc import Iterator

from watchman.commands import proftpd_file, proftpd_hooks, proftpd_log
from watchman.commands.findings import Finding, error, ok, warn
from watchman.commands.proftpd_file import Configuration, Directive
from watchman.commands.table import count
from watchman.rules import Rules
from watchman.settings import Settings

SUBJECT = "proftpd"


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
    if not settings.proftpd.transfer_log:
        yield from _locked_in(configuration, hooks)
    if hooks:
        for one in configuration.all("UserOwner"):
            text = "files are not their session's user's, whose word on them is refused"
            yield warn(SUBJECT, f"{one.place}: UserOwner: {text}; use the transfer log as well")
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


def _locked_in(configuration: Configuration, hooks: list[Directive]) -> Iterator[Finding]:
    """Users locked into a directory, where hooks do not run."""
    for one in configuration.all("DefaultRoot", "anonymous"):
        if not hooks or one.values[:1] == ("/",):
            continue
        what = "<Anonymous>" if one.name == "anonymous" else "DefaultRoot"
        text = f"{one.place}: {what}: no hook runs for whom it locks in; use the transfer log"
        some = what != "DefaultRoot" or len(one.values) > 1
        yield warn(SUBJECT, text) if some else error(SUBJECT, text)


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

"""`watchman check --proftpd FILE`: whether ProFTPD tells watchman what it should."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from watchman.commands.check import findings
from watchman.commands.check.findings import Finding
from watchman.commands.check.proftpd_file import Configuration, Directive, Server, hidden_name
from watchman.commands.check.rights import cannot_run, closed
from watchman.commands.shared.phrases import count
from watchman.config.rules import Rules
from watchman.config.settings import Settings
from watchman.sources.transferlog.lines import LOG_FORMAT
from watchman.uploads.rights import complaint, group_name, may

#: The socket that a hook connects to without --socket.
SOCKET = "/run/watchman/watchman.sock"

#: How the names of the directives begin by which mod_exec runs a program.
PROGRAMS = ("ExecBefore", "ExecOn")

#: A directive that runs our hook: for which commands or which event of ProFTPD, and the hook's
#: socket, event and fields.
HOOK = re.compile(
    r"(?P<name>(?:ExecBefore|ExecOn)\w+) (?:(?P<what>\S+) )?(?P<program>(?:\S*/)?watchman-hook)"
    r"(?: --socket (?P<socket>\S+))?(?: (?P<event>\S+))?(?P<fields>(?: .*)?)"
)

#: The directives of the shipped watchman.conf that run the hook. The last one stands outside of all
#: sections, and counts for all servers.
SHIPPED = list(
    HOOK.finditer("""\
ExecBeforeCommand STOR,APPE,STOU watchman-hook started user=%u client=%a path=%f
ExecOnCommand STOR,APPE,STOU watchman-hook completed user=%u client=%a path=%f
ExecOnError STOR,APPE,STOU watchman-hook failed user=%u client=%a path=%f
ExecOnCommand RNTO watchman-hook renamed user=%u client=%a from=%w path=%f
ExecOnExit watchman-hook ended user=%u
ExecOnEvent core.timeout-stalled~ watchman-hook ended user=%u
""")
)

#: Events for which no hook is needed if there is a transfer log.
LOGGED = frozenset({"completed", "failed", "renamed"})

#: Fields that watchman needs. The others are only for tasks.
NEEDED = frozenset({"path=%f", "from=%w"})


def _hooks(directives: Iterable[Directive]) -> list[tuple[Directive, re.Match[str]]]:
    """Return the directives that run our hook."""
    found = [(one, HOOK.fullmatch(str(one))) for one in directives]
    return [(one, hook) for one, hook in found if hook]


def _what(hook: re.Match[str]) -> set[str]:
    """Return the commands, or the event of ProFTPD, for which a hook runs."""
    return set((hook["what"] or "").split(","))


def check(settings: Settings, file: str) -> Iterator[Finding]:
    """Return the findings about a configuration and the INI file. No finding comes twice.

    The configuration is read now, the files that it names only while the caller iterates. By then
    the process has the rights of the daemon's user.
    """
    return _each_once(_Check(settings, Configuration(file)))


def _each_once(check: _Check) -> Iterator[Finding]:
    yield from dict.fromkeys(check.check())


def _error(place: str, text: str) -> Finding:
    return findings.error("proftpd", f"{place}: {text}")


def _warn(place: str, text: str) -> Finding:
    return findings.warn("proftpd", f"{place}: {text}")


class _Check:
    """One check of ProFTPD's configuration against the INI file."""

    def __init__(self, settings: Settings, configuration: Configuration) -> None:
        self._settings = settings
        self._configuration = configuration
        self._hooks = _hooks(configuration.directives)
        self._logs = settings.proftpd.transfer_log
        self._formats = {
            one.values[0]: one
            for one in configuration.directives
            if one.name == "LogFormat" and len(one.values) == 2
        }

    def check(self) -> Iterator[Finding]:
        configuration = self._configuration
        for place, problem in configuration.problems:
            yield _error(place, problem)
        if not configuration.files:
            return
        yield from self._not_loaded()
        servers = configuration.servers()
        for server in servers:
            for one in server.directives:
                yield from self._directive(one, server)
            yield from self._server(server, is_main=server is servers[0])
        for path in self._logs:
            yield from _log_file(path)
        if not any(watch.proftpd for watch in self._settings.watches.values()):
            text = "no [watch:...] has proftpd = yes, so nothing waits for ProFTPD's word"
            yield _warn(self._settings.file, text)
        ways = [name for name, way in (("hooks", self._hooks), ("log", self._logs)) if way]
        yield findings.ok(
            "proftpd",
            f"{configuration.file} with {count(len(configuration.files) - 1, 'more file')},"
            f" {count(len(servers), 'server')}; speaks by {' and '.join(ways) or 'nothing'}",
        )

    def _not_loaded(self) -> Iterator[Finding]:
        """Yield an error for hooks that ProFTPD ignores, and if nothing tells of uploads."""
        configuration = self._configuration
        skipped = [section for one, section in configuration.skipped if _hooks([one])]
        for section in skipped:
            what = " ".join(section.values)
            text = f"ProFTPD passes over the hooks below: {what} is not there"
            right = "LoadModule mod_exec.c above it" if what == "mod_exec.c" else "take it out"
            yield _error(section.place, f"{text}; {right}")
        if "mod_exec.c" not in configuration.modules:
            programs = (one for one in configuration.directives if one.name.startswith(PROGRAMS))
            for one in islice(programs, 1):
                text = "mod_exec is not loaded, and ProFTPD does not start"
                yield _error(one.place, f"{text}; LoadModule mod_exec.c above it")
        if not (self._hooks or self._logs or skipped):
            text = "it tells watchman nothing; Include watchman.conf, or use the transfer log"
            yield _error(f"{configuration.file}:1", text)

    def _directive(self, one: Directive, server: Server) -> Iterator[Finding]:
        """Yield what is wrong with a directive, and what to do.

        Tried with ProFTPD 1.3.8 and mod_vroot 0.9.11. watchman.dispatch.placing tells which paths
        these name.
        """
        place, log = one.place, bool(self._logs)
        hooks_alone = bool(self._hooks) and not log
        has_vroot = server.on("VRootEngine")
        # mod_vroot locks users in without chroot(2), so that hooks run for them.
        is_virtual = has_vroot and not server.all("VRootServerRoot")
        locks_in = hooks_alone and not is_virtual
        no_hook = "no hook runs for users whom it locks in; use the transfer log"
        match one.name, one.values:
            case "DefaultRoot", (root,) if locks_in and root != "/":
                yield _error(place, f"DefaultRoot: {no_hook}")
            case "DefaultRoot", (root, _, *_) if locks_in and root != "/":
                yield _warn(place, f"DefaultRoot: {no_hook}")
            case "anonymous", _ if locks_in:
                yield _warn(place, f"<Anonymous>: {no_hook}")
            case "ExecEnable", ("off" | "no" | "false", *_) if hooks_alone:
                yield _warn(place, "ExecEnable: no hook runs there; use the transfer log")
            case "UserOwner", _ if self._hooks:
                text = "files do not belong to the session's user, so watchman refuses his hooks"
                yield _warn(place, f"UserOwner: {text}; use the transfer log as well")
            case "VRootEngine", _ if is_virtual and hooks_alone:
                text = "for renames, STOU and all of SFTP hooks name paths within the user's root"
                text += ", which watchman cannot find; use the transfer log"
                yield _error(place, f"VRootEngine: {text}")
            case "VRootEngine", _ if is_virtual and log:
                text = "for renames and STOU the log names paths within the user's root, so"
                text += " watchman finds only files that the same user has uploaded just before;"
                text += " and hooks cannot say which upload a session that dies has begun"
                text += "; use DefaultRoot without mod_vroot"
                yield _warn(place, f"VRootEngine: {text}")
            case "VRootAlias", _ if has_vroot:
                text = "for uploads through an alias ProFTPD names paths that do not exist"
                yield _error(place, f"VRootAlias: {text}; use mount --bind")
            case "VRootServerRoot", _ if has_vroot:
                text = "no hook runs, and for renames ProFTPD names paths that do not exist"
                text += "; use DefaultRoot without mod_vroot, and the transfer log"
                yield _error(place, f"VRootServerRoot: {text}")
            case "ExecOptions", values if "usestdin" in map(str.lower, values):
                yield _error(place, "useStdin hands freed memory to programs; take it out")
            case "LogFormat", _ if one.within("virtualhost"):
                text = "LogFormat is not allowed there, and ProFTPD does not start"
                yield _error(place, f"{text}; put it on the outermost level")
            case "ExtendedLog", values if values:
                yield from self._log(place, *values[:3])
            case "HiddenStores", values:
                yield from self._hidden(place, values)
            case name, (commands, *_) if name.startswith(PROGRAMS):
                for what in {"ALL", "WRITE"}.intersection(commands.upper().split(",")):
                    text = f"{what} makes SFTP run a program for every 32 KiB; name the commands"
                    yield _error(place, f"{text}, as STOR,APPE,STOU")
        if hook := HOOK.fullmatch(str(one)):
            yield from self._hook(place, hook)

    def _hook(self, place: str, hook: re.Match[str]) -> Iterator[Finding]:
        if reason := cannot_run(hook["program"]):
            yield _error(place, f"{hook['program']} {reason}")
        socket, ours = hook["socket"] or SOCKET, self._settings.socket
        if os.path.realpath(socket) != os.path.realpath(ours):
            text = f"the hook speaks to {socket}, and watchman listens on {ours}"
            right = "leave --socket out" if ours == SOCKET else f"--socket {ours}"
            yield _error(place, f"{text}; {right}")
        event = hook["event"] or ""
        line = next((line for line in SHIPPED if line["event"] == event), None)
        if line is None:
            known = ", ".join(line["event"] for line in SHIPPED[:-1])
            yield _error(place, f"watchman-hook does not know the event {event!r}; {known}")
            return
        for name in line["fields"].split():
            if name not in hook["fields"].split():
                say = _error if name in NEEDED else _warn
                yield say(place, f"the hook does not say {name}; {line[0]}")

    def _server(self, server: Server, *, is_main: bool) -> Iterator[Finding]:
        """Yield what a server lacks."""
        logs = server.all("ExtendedLog")
        paths = {os.path.realpath(one.values[0]) for one in logs if one.values}
        if self._logs and paths.isdisjoint(map(os.path.realpath, self._logs)):
            text = f"{server.name} writes no transfer log; {self._log_line()}, in <Global>"
            yield _error(server.place, text)
        if not self._hooks:
            return
        hooks = _hooks(server.directives)
        place = hooks[0][0].place if hooks else server.place
        if not hooks and not (self._logs and logs):
            yield _warn(place, f"no hooks in {server.name}; put them into <Global>")
        for line in (*(SHIPPED[:-1] if hooks else ()), *(SHIPPED[-1:] if is_main else ())):
            same = line.group("name", "event")
            there = [_what(hook) for _, hook in hooks if hook.group("name", "event") == same]
            lacking = _what(line).difference(*there)
            if (lacking or not there) and not (self._logs and line["event"] in LOGGED):
                text = f"hooks of {server.name} do not say {line['event']!r}"
                text += f" for {','.join(sorted(lacking))}" if any(lacking) else ""
                yield _error(place, f"{text}; {line[0]}")
        if not hooks:
            return
        engine, denied = server.last("ExecEngine"), server.last("PathDenyFilter")
        timeout, options = server.last("ExecTimeout"), str(server.last("ExecOptions"))
        if not server.on("ExecEngine"):
            text = f"no hook runs in {server.name}; ExecEngine on"
            yield _error(engine.place if engine else place, text)
        given = options.lower().split()
        if timeout and timeout.values[:1] != ("0",) and not {"logstdout", "logstderr"} <= {*given}:
            text = "ExecTimeout alone makes every hook take 2 seconds"
            yield _error(timeout.place, f"{text}; ExecOptions logStdout logStderr")
        if denied is None or not _denies(*denied.values):
            text = "names with % or a line feed reach hooks as other names"
            where = denied.place if denied else place
            yield _warn(where, f'{text}; PathDenyFilter "(%|[[:cntrl:]])"')

    def _log(self, place: str, path: str, classes: str = "", name: str = "") -> Iterator[Finding]:
        """Yield what is wrong with a log that ProFTPD writes, if watchman reads it or should."""
        form = self._formats.get(name)
        token, _, rest = form.values[1].partition("|") if form else ("", "", "")
        if os.path.realpath(path) not in map(os.path.realpath, self._logs):
            if rest == LOG_FORMAT:
                names = ", ".join(self._logs) or "nothing"
                text = f"it writes {path}, and [proftpd] transfer_log names {names}"
                yield _error(place, f"{text}; make them the same")
            return
        if {"WRITE", "ALL"}.isdisjoint(classes.upper().replace("|", ",").split(",")):
            yield _error(place, f"it does not log uploads; {self._log_line()}")
        right = f'LogFormat {name or "watchman"} "TOKEN|{LOG_FORMAT}"'
        if form is None:
            what = f"there is no LogFormat {name}" if name else "it names no LogFormat"
            yield _error(place, f"{what}; {right}")
            return
        if rest != LOG_FORMAT:
            text = "it is not the LogFormat that watchman reads"
            yield _error(form.place, f"{text}; {right}, with [proftpd] token for TOKEN")
        # The token is a secret, so no message shows it.
        if token != self._settings.proftpd.token:
            text = "its first field is not [proftpd] token; make them the same"
            yield _error(form.place, text)
        file = form.place.rpartition(":")[0]
        # If we may not look at the file, a directory above it is closed, to everybody.
        is_open = may(file, os.F_OK) and os.stat(file).st_mode & stat.S_IROTH
        if is_open and not closed(os.path.dirname(file)):
            text = "everybody may read the token, and forge lines with it"
            yield _warn(form.place, f"{text}; chmod o= {file}")

    def _log_line(self) -> str:
        return f"ExtendedLog {self._logs[0]} WRITE watchman"

    def _hidden(self, place: str, values: tuple[str, ...]) -> Iterator[Finding]:
        """Yield an error for each watch that does not exclude the names of unfinished uploads."""
        name, rules = hidden_name(values, "a.csv"), Rules(self._settings)
        for watch in self._settings.watches.values():
            if name and rules.excluded(watch, name) is None:
                text = f"HiddenStores calls a file {name!r} while it is written, and watchman"
                text += " would take that for an upload"
                right = f"[watch:{watch.name}] exclude = {name.partition('a.csv')[0]}*"
                yield _error(place, f"{text}; {right}")


def _log_file(path: str) -> Iterator[Finding]:
    """Check that ProFTPD will write the log, that we may read it, and that users may not."""
    directory = os.path.dirname(path)
    if text := complaint(directory, os.X_OK):
        yield _error(path, text)
        return
    if os.path.islink(path):
        yield _error(path, "ProFTPD does not write to a symlink; make it a file")
    if not os.path.isdir(directory):
        make = f"install -d -m 0750 -g {group_name(os.getegid())} {directory}"
        yield _error(path, f"ProFTPD does not make {directory}; {make}")
        return
    for above in (directory, *map(str, Path(directory).parents)):
        mode = os.stat(above).st_mode
        # In a sticky directory, such as /tmp, users can rename only files of their own.
        if mode & stat.S_IWOTH and (above == directory or not mode & stat.S_ISVTX):
            text = "anyone could put another log in its place"
            text = "ProFTPD refuses to log there" if above == directory else text
            yield _error(path, f"everybody may write {above}: {text}; chmod o-w {above}")
    is_there = os.path.exists(path)
    # ProFTPD makes the log with mode 0644.
    mode = os.stat(path).st_mode if is_there else 0o644
    if mode & stat.S_IROTH and not closed(directory):
        text = "FTP users may read the token in it, and forge lines"
        yield _warn(path, f"{text}; chmod o= {directory}")
    text = complaint(path, os.R_OK) if is_there else ""
    yield _error(path, text) if text else findings.ok("proftpd", path)


def _denies(pattern: str = "", *flags: str) -> bool:
    """Whether a PathDenyFilter refuses the names that a hook cannot pass on."""
    pattern = pattern.replace("[:cntrl:]", r"\x00-\x1f\x7f")
    case = re.IGNORECASE if "NC" in "".join(flags) else 0
    try:
        return all(re.search(pattern, name, case) for name in ("a%u.csv", "a\nb.csv"))
    except re.error:
        return True  # it may be right all the same: POSIX has syntax that Python lacks

"""What is wrong with the hooks in ProFTPD's configuration."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from watchman.commands.check.findings import Finding, error, warn
from watchman.commands.check.proftpd_file import Configuration, Directive, Server
from watchman.config.settings import Settings

SUBJECT = "proftpd"

#: mod_exec's directives, and how many values stand before the program.
PROGRAM_AT = {
    "ExecBeforeCommand": 1,
    "ExecOnCommand": 1,
    "ExecOnError": 1,
    "ExecOnEvent": 1,
    "ExecOnConnect": 0,
    "ExecOnExit": 0,
    "ExecOnRestart": 0,
}

STORES = frozenset({"STOR", "APPE", "STOU"})

#: Where a hook speaks to, unless --socket says otherwise.
SOCKET = "/run/watchman/watchman.sock"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the shipped watchman.conf; `hint` says that the log makes it needless."""

    event: str
    directive: str
    what: frozenset[str]
    fields: tuple[str, ...]
    hint: bool = False

    def __str__(self) -> str:
        order = [name for name in ("STOR", "APPE", "STOU") if name in self.what]
        what = ",".join(order or self.what)
        return " ".join(
            filter(None, (self.directive, what, "watchman-hook", self.event, *self.fields))
        )


_FILE = ("user=%u", "client=%a", "path=%f")

LINES = (
    Line("started", "ExecBeforeCommand", STORES, _FILE),
    Line("completed", "ExecOnCommand", STORES, _FILE, hint=True),
    Line("failed", "ExecOnError", STORES, _FILE, hint=True),
    Line(
        "renamed",
        "ExecOnCommand",
        frozenset({"RNTO"}),
        ("user=%u", "client=%a", "from=%w", "path=%f"),
        hint=True,
    ),
    Line("ended", "ExecOnExit", frozenset(), ("user=%u",)),
    Line("ended", "ExecOnEvent", frozenset({"core.timeout-stalled~"}), ("user=%u",)),
)

#: Fields without which watchman cannot do; the others are told to tasks.
NEEDED = frozenset({"path=%f", "from=%w"})


def found(configuration: Configuration) -> list[Directive]:
    """Return the directives that run our hook."""
    return [one for one in configuration.directives if _is_ours(one)]


def check(
    settings: Settings, configuration: Configuration, hooks: list[Directive]
) -> Iterator[Finding]:
    """Say what is wrong with the hooks, or that neither they nor a log are there."""
    yield from _not_loaded(configuration)
    for one in configuration.all(*PROGRAM_AT):
        yield from _too_often(one)
    for one in configuration.all("ExecOptions"):
        if "usestdin" in map(str.lower, one.values):
            text = "useStdin hands freed memory to programs; take it out"
            yield error(SUBJECT, f"{one.place}: {text}")
    for one in hooks:
        yield from _hook(settings, one)
    with_log = bool(settings.proftpd.transfer_log)
    servers = configuration.servers()
    if not hooks and not with_log:
        if not any(_is_ours(one) for one, _ in configuration.skipped):
            text = "it tells watchman nothing; Include watchman.conf, or use the transfer log"
            yield error(SUBJECT, f"{servers[0].place}: {text}")
        return
    for server in servers if hooks else ():
        yield from _server(server, with_log=with_log)
        if server is servers[0]:
            # ProFTPD takes an ExecOnEvent for all servers, on the outermost level.
            yield from _missing(server, LINES[-1])


def _is_ours(one: Directive) -> bool:
    return os.path.basename(_program(one)) == "watchman-hook"


def _program(one: Directive) -> str:
    at = PROGRAM_AT.get(one.name)
    return "".join(one.values[at : at + 1]) if at is not None else ""


def _arguments(one: Directive) -> tuple[str, list[str]]:
    """Return the socket and the other arguments of a hook."""
    arguments = list(one.values[PROGRAM_AT[one.name] + 1 :])
    if arguments[:1] == ["--socket"]:
        return "".join(arguments[1:2]), arguments[2:]
    return SOCKET, arguments


def _not_loaded(configuration: Configuration) -> Iterator[Finding]:
    for one, section in configuration.skipped:
        if _is_ours(one):
            what = " ".join(section.values)
            text = f"ProFTPD passes over the hooks below: {what} is not there"
            right = "LoadModule mod_exec.c above it" if what == "mod_exec.c" else "take it out"
            yield error(SUBJECT, f"{section.place}: {text}; {right}")
    if "mod_exec.c" not in configuration.modules:
        for one in configuration.all(*PROGRAM_AT)[:1]:
            text = "mod_exec is not loaded, and ProFTPD does not start"
            yield error(SUBJECT, f"{one.place}: {text}; LoadModule mod_exec.c above it")


def _too_often(one: Directive) -> Iterator[Finding]:
    for name in ("ALL", "WRITE"):
        if PROGRAM_AT[one.name] and name in "".join(one.values[:1]).upper().split(","):
            text = f"{name} makes SFTP run a program for every 32 KiB; name the commands"
            yield error(SUBJECT, f"{one.place}: {text}, as STOR,APPE,STOU")


def _hook(settings: Settings, one: Directive) -> Iterator[Finding]:
    program = _program(one)
    if complaint := _cannot_run(program):
        yield error(SUBJECT, f"{one.place}: {program} {complaint}")
    socket, arguments = _arguments(one)
    if os.path.realpath(socket) != os.path.realpath(settings.socket):
        text = f"the hook speaks to {socket}, and watchman listens on {settings.socket}"
        right = "leave --socket out" if settings.socket == SOCKET else f"--socket {settings.socket}"
        yield error(SUBJECT, f"{one.place}: {text}; {right}")
    event, *fields = arguments or [""]
    known = [line for line in LINES if line.event == event]
    if not known:
        text = f"watchman-hook does not know the event {event!r}"
        yield error(SUBJECT, f"{one.place}: {text}; {', '.join(line.event for line in LINES[:5])}")
        return
    for name in known[0].fields:
        if name not in fields:
            say = error if name in NEEDED else warn
            yield say(SUBJECT, f"{one.place}: the hook does not say {name}; {known[0]}")


def _cannot_run(program: str) -> str:
    """Why a user of ProFTPD's cannot run a program, or nothing."""
    if not os.path.isabs(program):
        return "is no absolute path"
    try:
        mode = os.stat(program).st_mode
    except OSError as e:
        return f"cannot be run: {e.strerror}; install proftpd/watchman-hook there"
    if not stat.S_ISREG(mode):
        return "is not a file"
    if ~mode & (stat.S_IROTH | stat.S_IXOTH):
        return f"cannot be run by FTP users; chmod 755 {program}"
    if mode & stat.S_IWOTH:
        return f"may be changed by everybody; chmod 755 {program}"
    above = os.path.dirname(os.path.realpath(program))
    while above != "/":
        if not os.stat(above).st_mode & stat.S_IXOTH:
            return f"cannot be reached by FTP users through {above}; chmod o+x {above}"
        above = os.path.dirname(above)
    return ""


def _server(server: Server, *, with_log: bool) -> Iterator[Finding]:
    if not any(map(_is_ours, server.directives)):
        text = f"no hooks in {server.name}; put them into <Global>"
        if not (with_log and server.all("ExtendedLog")):
            yield warn(SUBJECT, f"{server.place}: {text}")
        return
    first = next(filter(_is_ours, server.directives))
    engine = server.last("ExecEngine")
    if engine is None or not server.on("ExecEngine"):
        place = engine.place if engine else first.place
        yield error(SUBJECT, f"{place}: no hook runs in {server.name}; ExecEngine on")
    for line in LINES[:-1]:
        if not (line.hint and with_log):
            yield from _missing(server, line)
    timeout, options = server.last("ExecTimeout"), server.last("ExecOptions")
    given = {value.lower() for value in options.values} if options else set()
    timed = timeout is not None and timeout.values[:1] != ("0",)
    if timeout is not None and timed and not {"logstdout", "logstderr"} <= given:
        text = "ExecTimeout alone makes every hook take 2 seconds"
        yield error(SUBJECT, f"{timeout.place}: {text}; ExecOptions logStdout logStderr")
    denied = server.last("PathDenyFilter")
    if denied is None or not _denies(denied.values):
        place = denied.place if denied else first.place
        text = "names with % or a line feed reach hooks as other names"
        yield warn(SUBJECT, f'{place}: {text}; PathDenyFilter "(%|[[:cntrl:]])"')


def _missing(server: Server, line: Line) -> Iterator[Finding]:
    """Say for what the hook of one line of ours does not run."""
    there: set[str] = set()
    any_there = False
    for one in filter(_is_ours, server.all(line.directive)):
        if _arguments(one)[1][:1] == [line.event]:
            any_there = True
            there |= set(one.values[0].split(",")) if PROGRAM_AT[one.name] else set()
    if not any_there or not line.what <= there:
        first = next(filter(_is_ours, server.directives), None)
        place = first.place if first else server.place
        lacking = ",".join(sorted(line.what - there))
        text = f"hooks of {server.name} do not say {line.event!r}"
        text += f" for {lacking}" if lacking else ""
        yield error(SUBJECT, f"{place}: {text}; {line}")


def _denies(values: tuple[str, ...]) -> bool:
    """Whether a PathDenyFilter keeps out names that a hook cannot tell."""
    pattern = "".join(values[:1]).replace("[:cntrl:]", r"\x00-\x1f\x7f")
    flags = re.IGNORECASE if "NC" in "".join(values[1:]) else 0
    try:
        return all(re.search(pattern, name, flags) for name in ("a%u.csv", "a\nb.csv"))
    except re.error:
        return True  # POSIX knows more than Python; believe it

"""Reads the INI file, checks it as a whole, and turns it into settings."""

import configparser
import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from watchman.config import moves, options, trusted
from watchman.config.options import close_to
from watchman.config.sections import SECTIONS, SINGLE, lookup
from watchman.config.settings import (
    BrokerSettings,
    MoveSettings,
    ProftpdSettings,
    Settings,
    TaskSettings,
    WatchSettings,
)
from watchman.errors import ConfigError

#: Options of `[task:NAME]` that go to Celery's send_task as they are.
_SEND_OPTIONS = (
    *("queue", "exchange", "routing_key", "priority"),
    *("expires", "countdown", "time_limit", "soft_time_limit"),
)

#: Names go into file names, and into commands as `watch:NAME`.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

#: After more problems than this we stop reading, because the file is not an INI file.
_ENOUGH = 20

#: Longest message about a problem, in characters.
_LONGEST = 2000

#: Most blanks in a row within a line. configparser's time grows with the square of their number.
_BLANKS = 1000

#: The beginning of names that replace those that came twice, so that reading can go on.
_TWICE = "\0"


def load(path: str) -> Settings:
    """Read and check the INI file. Raises ConfigError with everything that is wrong in it.

    Of the files that the INI file names it reads Celery settings, `url_file` and `token_file`.
    """
    return _Ini(path).settings()


class _Ini:
    """One INI file while it is read: its values by section, and the problems found so far."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.directory = os.path.dirname(self.path)
        self.problems: list[str] = []
        #: The values that could be read, by kind and name of section, and by option. A section
        #: without a name has the name "".
        self.sections: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in SECTIONS}
        #: Options that hold a secret.
        self.secrets: list[str] = []

    def settings(self) -> Settings:
        parser = self._parse(self._text().replace("\r\n", "\n").split("\n"))
        for section in parser.sections():
            if not section.startswith(_TWICE):
                self._read(section, parser)
        if not self.sections["watchman"]:
            self._problem("spool", "missing", section="watchman")
        self._check()
        if self.problems:
            raise ConfigError(self.problems)
        return self._build()

    def _problem(self, option: str, what: str, *, section: str = "", value: str = "") -> None:
        where = f"{self.path}: "
        if section:
            where += f"[{section}] {option}{' = ' if value else ''}{options.shown(option, value)}: "
        # One printable line each, whatever bytes are in a name, a value or an exception's text.
        line = " ".join((where + what).split())
        if len(line) > _LONGEST:
            line = f"{line[:_LONGEST]}..."
        self.problems.append("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))

    def _text(self) -> str:
        try:
            text = trusted.read(self.path).decode("utf-8-sig")
            if "\0" not in text:
                return text
            what = "holds NULs, so it is not a text file"
        except FileNotFoundError:
            what = "no such file; name one with -c FILE or $WATCHMAN_CONFIG"
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            what = f"line {line} is not UTF-8"
        except ValueError as error:
            what = str(error)
        self._problem("", what)
        raise ConfigError(self.problems)

    def _parse(self, lines: list[str]) -> configparser.ConfigParser:
        """Have configparser read the lines. If it stops at one, replace that and begin again."""
        self._check_dropped(lines)
        for number, line in enumerate(lines, 1):
            if any(len(run) > _BLANKS for run in re.findall(r"\s+", line.strip())):
                self._problem("", f"line {number}: has more than {_BLANKS} blanks in a row")
                self._replace(lines, number, "")
        while True:
            # The default section gets an empty name, which no section can have. So [DEFAULT] is
            # reported as unknown.
            parser = configparser.ConfigParser(interpolation=None, default_section="")
            try:
                parser.read_file(line + "\n" for line in lines)
                return parser
            except configparser.DuplicateSectionError as error:
                self._problem("", f"line {error.lineno}: [{error.section}] is there twice")
                self._replace(lines, error.lineno, f"[{_TWICE}{error.lineno}]")
            except configparser.DuplicateOptionError as error:
                what = f"line {error.lineno}: [{error.section}] has {error.option} twice"
                self._problem("", what)
                self._replace(lines, error.lineno, f"{_TWICE}{error.lineno} =")
            except configparser.MissingSectionHeaderError as error:
                self._problem("", f"line {error.lineno}: stands before the first [section]")
                rest = range(error.lineno, len(lines))
                first = next((n for n in rest if lines[n].lstrip().startswith("[")), len(lines))
                lines[:first] = [""] * first
            except configparser.ParsingError as error:
                for number, _ in error.errors:
                    self._problem("", f"line {number}: neither [section] nor option = value")
                    self._replace(lines, number, "")
            if len(self.problems) > _ENOUGH:
                raise ConfigError(self.problems)

    def _replace(self, lines: list[str], number: int | None, line: str) -> None:
        assert number is not None, "configparser says the line of what it reads from lines"
        old = lines[number - 1]
        # Keep its indentation, by which configparser sees whether the next line continues this one.
        lines[number - 1] = old[: len(old) - len(old.lstrip())] + line

    def _check_dropped(self, lines: list[str]) -> None:
        """Report patterns such as `#*#`: configparser drops a value's lines that begin so."""
        in_patterns = False
        for number, line in enumerate(lines, 1):
            if re.match(r"\[|\s*\w+\s*[=:]", line):
                in_patterns = bool(re.match(r"\s*(pattern|exclude)\s*[=:]", line))
            elif in_patterns and (match := re.match(r"\s+([#;])(\S.*)", line)):
                mark, rest = match.groups()
                self._problem(
                    "",
                    f"line {number}: {mark}{rest} would be taken for a comment;"
                    f" write [{mark}]{rest} for a pattern, or {mark} {rest} for a comment",
                )

    def _read(self, section: str, parser: configparser.ConfigParser) -> None:
        kind, colon, name = section.partition(":")
        if kind not in SECTIONS:
            known = [k if k in SINGLE else f"{k}:NAME" for k in SECTIONS]
            hint = close_to(kind, SECTIONS) or f"; known are [{'], ['.join(known)}]"
            self._problem("", f"[{section}] is not a known section{hint}")
            return
        if kind in SINGLE and colon:
            self._problem("", f"[{section}] has no name; write [{kind}]")
        if kind not in SINGLE and not _NAME.fullmatch(name):
            what = "a name of letters, digits and . _ -"
            self._problem("", f"[{section}] needs {what}, as in [{kind}:example]")
        values = self.sections[kind].setdefault(name, {})
        for option, text in parser.items(section):
            if not option.startswith(_TWICE):
                self._read_option(section, kind, option, text, values)
        given = {option for option in SECTIONS[kind] if parser.has_option(section, option)}
        for option, how in SECTIONS[kind].items():
            if how.for_ and option in given:
                if how.for_ in given:
                    self._problem(option, f"{how.for_} is set as well; keep one", section=section)
                elif option in values:
                    values[how.for_] = values.pop(option)
                given.add(how.for_)
        for option, how in SECTIONS[kind].items():
            if how.required and option not in given:
                self._problem(option, "missing", section=section)

    def _read_option(
        self, section: str, kind: str, option: str, text: str, values: dict[str, Any]
    ) -> None:
        if options.holds_secret(option, text):
            self.secrets.append(f"[{section}] {option}")
        try:
            how = lookup(kind, option)
            values[option] = how.read(text, self.directory) if how.relative else how.read(text)
        except ValueError as error:
            what = str(error)
            if options.has_comment(text) and "comment" not in what:
                what += "; a comment goes on a line of its own"
            self._problem(option, what, section=section, value=text)

    def _check(self) -> None:
        """Report options that are right by themselves but do not fit together."""
        watches, tasks = self.sections["watch"], self.sections["task"]
        if not watches:
            self._problem("", "no [watch:NAME] section: no upload would ever be seen")
        if not tasks and not self.sections["move"]:
            what = "no [task:NAME] or [move:NAME] section: watchman would do nothing with an upload"
            self._problem("", what)
        proftpd = self.sections["proftpd"].get("", {})
        wrong = any("[proftpd] token" in problem for problem in self.problems)
        if proftpd.get("transfer_log") and "token" not in proftpd and not wrong:
            what = "missing: the first field of each line that LogFormat writes to transfer_log"
            self._problem("token", what, section="proftpd")
        for name, values in tasks.items():
            self._check_task(f"task:{name}", values)
        for values in self.sections["watchman"].values():
            if on_failed := values.get("on_failed"):
                self._check_broker("watchman", "on_failed", on_failed.broker)
        seen: dict[str, str] = {}
        for name, values in watches.items():
            if path := values.get("path"):
                real = os.path.realpath(path)
                if real in seen:
                    what = f"is the directory of [watch:{seen[real]}] already"
                    self._problem("path", what, section=f"watch:{name}", value=path)
                seen.setdefault(real, name)
        for section, option, path in _own_files(self.sections):
            for real, name in seen.items():
                if os.path.join(os.path.realpath(path), "").startswith(os.path.join(real, "")):
                    what = (
                        f"lies below [watch:{name}], so each file written there would be an upload"
                    )
                    self._problem(option, what, section=section, value=path)
        whole_watches = {n: WatchSettings(n, **v) for n, v in watches.items() if "path" in v}
        for section, option, value, what in moves.problems(self._moves(), whole_watches):
            self._problem(option, what, section=section, value=value)

    def _moves(self) -> dict[str, MoveSettings]:
        """Return the moves whose two paths could be read."""
        return {
            name: MoveSettings(name, **values)
            for name, values in self.sections["move"].items()
            if {"source", "destination"} <= set(values)
        }

    def _check_task(self, section: str, values: dict[str, Any]) -> None:
        if "broker" in values:
            self._check_broker(section, "broker", values["broker"])
        limit = values.get("time_limit")
        if limit is not None and values.get("soft_time_limit", limit) > limit:
            what = f"is beyond time_limit ({limit:g} s), so it would never take effect"
            self._problem("soft_time_limit", what, section=section)

    def _check_broker(self, section: str, option: str, broker: str) -> None:
        brokers = self.sections["broker"]
        if broker not in brokers:
            known = f"; there are {', '.join(brokers)}" if brokers else "; there is none yet"
            what = f"there is no [broker:{broker}]{close_to(broker, brokers) or known}"
            self._problem(option, what, section=section, value=broker)

    def _doubts(self) -> Iterator[str]:
        """Yield what is odd about the Celery settings files."""
        for kind in ("celery", "broker"):
            for name, values in self.sections[kind].items():
                for what in values["config"].warnings if "config" in values else ():
                    yield f"[{kind}{':' if name else ''}{name}] config: {what}"

    def _build(self) -> Settings:
        defaults = {option: how.default for option, how in SECTIONS["watchman"].items()}
        celery = {"task_serializer": "json"}
        for values in self.sections["celery"].values():
            celery |= _celery(values)
        return Settings(
            file=self.path,
            **(defaults | self.sections["watchman"][""]),
            watches={
                name: WatchSettings(name, **values)
                for name, values in self.sections["watch"].items()
            },
            brokers={
                name: BrokerSettings(
                    name,
                    values["url"],
                    celery | _celery(values),
                    values.get("declare", SECTIONS["broker"]["declare"].default),
                )
                for name, values in self.sections["broker"].items()
            },
            proftpd=ProftpdSettings(**self.sections["proftpd"].get("", {})),
            tasks=tuple(_task(name, values) for name, values in self.sections["task"].items()),
            moves=self._moves(),
            exposed=tuple(self.secrets) if os.stat(self.path).st_mode & stat.S_IROTH else (),
            doubts=tuple(self._doubts()),
        )


def _own_files(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield section, option and path of all that the daemon writes, or ProFTPD for it."""
    for values in sections["watchman"].values():
        for option in ("spool", "log_file", "metrics"):
            if path := values.get(option):
                yield "watchman", option, path
    for values in sections["proftpd"].values():
        for path in values.get("transfer_log", ()):
            yield "proftpd", "transfer_log", path
    for name, values in sections["broker"].items():
        for url in values.get("url", "").split(";"):
            if url.startswith("filesystem://"):
                yield f"broker:{name}", "url", url.removeprefix("filesystem://")


def _celery(values: dict[str, Any]) -> dict[str, Any]:
    """Return a section's Celery settings. Its options go before those of its settings file."""
    own = SECTIONS["celery"] | SECTIONS["broker"]
    beside = {name: value for name, value in values.items() if name not in own}
    return {**(values["config"].settings if "config" in values else {}), **beside}


def _task(name: str, values: dict[str, Any]) -> TaskSettings:
    send = {option: values.pop(option) for option in _SEND_OPTIONS if option in values}
    return TaskSettings(name, values.pop("pattern"), options=send, **values)

"""What is wrong with the transfer log in ProFTPD's configuration, and with the file itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from watchman.commands.check.findings import Finding, error, ok, warn
from watchman.commands.check.proftpd_file import Configuration, Directive, Server
from watchman.commands.shared.filesystems import may, user_name
from watchman.config.settings import Settings
from watchman.sources.transferlog.lines import LOG_FORMAT

SUBJECT = "proftpd"


def check(settings: Settings, configuration: Configuration) -> Iterator[Finding]:
    """Say what is wrong with the log that the INI file names, or with one it should name."""
    formats = {one.values[0]: one for one in configuration.all("LogFormat") if len(one.values) == 2}
    for one in formats.values():
        if one.within("virtualhost"):
            text = "LogFormat is not allowed there, and ProFTPD does not start"
            yield error(SUBJECT, f"{one.place}: {text}; put it on the outermost level")
    logs = [os.path.realpath(path) for path in settings.proftpd.transfer_log]
    for one in configuration.all("ExtendedLog"):
        if one.values and os.path.realpath(one.values[0]) in logs:
            yield from _log(settings, one, formats)
        elif len(one.values) == 3 and _is_ours(formats.get(one.values[2])):
            says = ", ".join(settings.proftpd.transfer_log) or "nothing"
            text = f"it writes {one.values[0]}, and [proftpd] transfer_log names {says}"
            yield error(SUBJECT, f"{one.place}: {text}; make them the same")
    if logs:
        for server in configuration.servers():
            yield from _written(settings, server, logs)
        for path in settings.proftpd.transfer_log:
            yield from _file(path)


def _is_ours(one: Directive | None) -> bool:
    return one is not None and one.values[1].partition("|")[2] == LOG_FORMAT


def _line(settings: Settings) -> str:
    return f"ExtendedLog {settings.proftpd.transfer_log[0]} WRITE watchman"


def _written(settings: Settings, server: Server, logs: list[str]) -> Iterator[Finding]:
    """Whether a server writes to a log of ours."""
    paths = [os.path.realpath(one.values[0]) for one in server.all("ExtendedLog") if one.values]
    if not set(paths) & set(logs):
        text = f"{server.name} writes no transfer log"
        yield error(SUBJECT, f"{server.place}: {text}; {_line(settings)}, in <Global>")


def _log(settings: Settings, one: Directive, formats: dict[str, Directive]) -> Iterator[Finding]:
    classes = "".join(one.values[1:2]).upper().replace("|", ",").split(",")
    if not {"WRITE", "ALL"} & set(classes):
        yield error(SUBJECT, f"{one.place}: it does not log uploads; {_line(settings)}")
    name = "".join(one.values[2:3])
    form = formats.get(name)
    right = f'LogFormat {name or "watchman"} "TOKEN|{LOG_FORMAT}"'
    if form is None:
        what = f"there is no LogFormat {name}" if name else "it names no LogFormat"
        yield error(SUBJECT, f"{one.place}: {what}; {right}")
        return
    if not _is_ours(form):
        text = "it is not the LogFormat that watchman reads"
        yield error(SUBJECT, f"{form.place}: {text}; {right}, with [proftpd] token for TOKEN")
    # The token is a secret: neither is shown.
    if form.values[1].partition("|")[0] != settings.proftpd.token:
        text = "its first field is not [proftpd] token"
        yield error(SUBJECT, f"{form.place}: {text}; make them the same")
    file = form.place.rpartition(":")[0]
    if os.stat(file).st_mode & stat.S_IROTH and _lets_others_through(os.path.dirname(file)):
        text = "everybody may read the token, and forge lines with it"
        yield warn(SUBJECT, f"{form.place}: {text}; chmod o= {file}")


def _file(path: str) -> Iterator[Finding]:
    """Whether ProFTPD will write the log, we may read it, and nobody else."""
    directory = os.path.dirname(path)
    if os.path.islink(path):
        yield error(SUBJECT, f"{path}: ProFTPD writes to no symlink; make it a file")
    if not os.path.isdir(directory):
        text = f"ProFTPD does not make {directory}"
        make = f"install -d -m 0750 -g {user_name(os.geteuid())} {directory}"
        yield error(SUBJECT, f"{path}: {text}; {make}")
        return
    above = directory
    while True:
        mode = os.stat(above).st_mode
        # In a sticky one, as /tmp, nobody can rename what is not his.
        if mode & stat.S_IWOTH and (above == directory or not mode & stat.S_ISVTX):
            text = "ProFTPD refuses to log there" if above == directory else "all may rename in it"
            yield error(SUBJECT, f"{path}: everybody may write {above}: {text}; chmod o-w {above}")
        if above == "/":
            break
        above = os.path.dirname(above)
    reach = path if os.path.exists(path) else directory
    # ProFTPD makes it 0644.
    if (reach == directory or os.stat(path).st_mode & stat.S_IROTH) and _lets_others_through(
        directory
    ):
        text = "FTP users may read it, its token too, and forge lines"
        yield warn(SUBJECT, f"{path}: {text}; chmod o= {directory}")
    me = user_name(os.geteuid())
    if not may(reach, os.R_OK if reach == path else os.X_OK):
        yield error(SUBJECT, f"{path}: {me} may not read it; chgrp {me} {directory}")
    else:
        yield ok(SUBJECT, path)


def _lets_others_through(directory: str) -> bool:
    """Whether all users get to what is in a directory."""
    while os.stat(directory).st_mode & stat.S_IXOTH:
        if directory == "/":
            return True
        directory = os.path.dirname(directory)
    return False

"""The values of the INI file, after `inifile` has read, typed and checked them."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from watchman.config import trusted

#: Patterns for hidden files, and for the names that clients give to files they are still uploading.
DEFAULT_EXCLUDES = (".*", "*.filepart", "*.part", "*.partial", "*.tmp")


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """A `[watch:NAME]` section. `path` is absolute and normalized; durations in seconds.

    `unconfirmed` is "accept" or "hold".
    """

    name: str
    path: str
    rec: bool = True
    auto_add: bool = True
    proftpd: bool = False
    confirm: float = 10.0
    unconfirmed: str = "accept"
    settle: float = 0.0
    exclude: tuple[str, ...] = ()
    exclude_defaults: bool = True
    catch_up: bool = True
    existing: bool = False
    rescan: float = 3600.0
    mounted: bool = False


@dataclass(frozen=True, slots=True)
class MoveSettings:
    """A `[move:NAME]` section. `source` and `destination` are absolute and normalized.

    If `mode`, `directory_mode`, `owner` (uid) or `group` (gid) is None, the source's is kept.
    """

    name: str
    source: str
    destination: str
    unique: str = "collision"
    folders: tuple[str, ...] = ()
    mounted: bool = False
    mode: int | None = None
    directory_mode: int | None = None
    owner: int | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True)
class ProftpdSettings:
    """The `[proftpd]` section: absolute paths of the transfer logs, and their lines' secret."""

    transfer_log: tuple[str, ...] = ()
    token: str = ""


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """A `[broker:NAME]` section. `url` has its `${NAME}` filled in, `filesystem://` is absolute.

    `celery` has the Celery settings by lowercase name. This section goes before `[celery]`, and in
    each of them the options go before the settings file. Without `declare`, somebody else makes
    queues, exchanges and bindings.
    """

    name: str
    url: str
    celery: Mapping[str, Any] = field(default_factory=dict)
    declare: bool = True


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """A `[task:NAME]` section. `patterns` are fnmatch patterns; `args`, `kwargs` parsed JSON."""

    name: str
    patterns: tuple[str, ...]
    broker: str
    task: str
    ignore_case: bool = False
    args: list[Any] = field(default_factory=lambda: ["{path}"])
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OnFailed:
    """The option `on_failed`: the task that is sent for each failed upload, and its broker."""

    broker: str
    task: str


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole INI file. Names map to sections; `tasks` keep the file's order.

    `exposed` names the options that hold a secret, if everyone may read the file. `doubts` are
    messages about what Celery settings files seem to get wrong.
    """

    file: str
    spool: str
    socket: str
    admins: tuple[str, ...]
    log_level: str
    log_file: str
    log_format: str
    drain: float
    history: float
    keep_failed: float
    watches: Mapping[str, WatchSettings]
    brokers: Mapping[str, BrokerSettings]
    tasks: tuple[TaskSettings, ...]
    proftpd: ProftpdSettings = ProftpdSettings()
    moves: Mapping[str, MoveSettings] = field(default_factory=dict)
    metrics: str = ""
    on_failed: OnFailed | None = None
    exposed: tuple[str, ...] = field(default=(), compare=False)
    doubts: tuple[str, ...] = field(default=(), compare=False)

    def warnings(self) -> Iterator[str]:
        """Yield messages about the INI file, and about files that it names, and what to do."""
        yield from self.doubts
        if not self.exposed:
            return
        what = f"{', '.join(self.exposed)}: a password or token, and everyone may read the file"
        try:
            daemon = os.stat(self.spool).st_uid
        except OSError:
            daemon = os.geteuid()
        yield f"{what}; {trusted.how_to_close(self.file, daemon)}"

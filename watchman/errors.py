"""The errors that watchman raises, one class for each thing that a caller handles differently."""

from collections.abc import Sequence


class WatchmanError(Exception):
    """Base of every error that watchman raises itself."""


class ConfigError(WatchmanError):
    """The INI file is wrong. `problems` has one line for each mistake in it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class JournalCorrupt(WatchmanError):
    """A record of the journal cannot be read back."""


class JournalTooNew(WatchmanError):
    """A newer watchman has written the journal."""


class JournalUnwritable(WatchmanError):
    """A batch of records could not be made durable. None of them counts."""


class SpoolLocked(WatchmanError):
    """Another daemon holds the spool."""


class SpoolNotOurs(WatchmanError):
    """The spool, or a file in it, is another user's."""


class SocketUnavailable(WatchmanError):
    """The Unix socket cannot be made, or nobody answers on it."""


class BrokerUnavailable(WatchmanError):
    """A broker cannot be reached or did not confirm in time; try again later."""


class TaskRefused(WatchmanError):
    """A task that no retry can publish, such as one whose arguments cannot be serialized."""


class NotBelowWatch(WatchmanError):
    """A path leads out of every watch, or over a symlink below one."""


class RequestRefused(WatchmanError):
    """A request on the socket was answered by ERROR, or is not a request at all."""


class InotifyUnavailable(WatchmanError):
    """The kernel gives no inotify instance."""


class ForeignRecord(WatchmanError):
    """A line of a transfer log is not whole, or ProFTPD did not write it in our LogFormat."""


class Obstructed(WatchmanError):
    """A file cannot be moved until somebody changes something, such as a file in its way."""


class BeingWritten(WatchmanError):
    """A file cannot be moved now, because somebody has opened it for writing."""


class Superseded(WatchmanError):
    """A file is not what it was when it was accepted."""


class PausesUnwritable(WatchmanError):
    """The list of pauses cannot be written to disk, so it stays as it was."""


class Stopped(WatchmanError):
    """The daemon is stopping, so it gave up work that takes long."""


class TakesLong(WatchmanError):
    """A file is so large that other uploads would wait while it is copied."""


class Refused(WatchmanError):
    """A file belongs to somebody else. Where it was found, it is only a hard link."""

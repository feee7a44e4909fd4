"""What can go wrong, one class per thing that a caller handles differently."""

from collections.abc import Sequence


class WatchmanError(Exception):
    """Base of every error that watchman raises itself."""


class ConfigError(WatchmanError):
    """The INI file is wrong; `problems` holds one line for everything that is."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class JournalCorrupt(WatchmanError):
    """A record of the journal cannot be read back."""


class JournalTooNew(WatchmanError):
    """A newer watchman has written the journal."""


class JournalUnwritable(WatchmanError):
    """A batch of records could not be made durable; nothing of it counts."""


class SpoolLocked(WatchmanError):
    """Another daemon holds the spool."""


class SpoolNotOurs(WatchmanError):
    """The spool, or a file in it, is another user's."""


class SocketUnavailable(WatchmanError):
    """The Unix socket cannot be made, or nobody answers on it."""


class BrokerUnavailable(WatchmanError):
    """A broker cannot be reached or did not confirm in time; try again later."""


class TaskRefused(WatchmanError):
    """A task that no retry can publish, as arguments that cannot be serialized."""


class NotBelowWatch(WatchmanError):
    """A path leads out of every watch, or over a symlink below one."""


class RequestRefused(WatchmanError):
    """A request on the socket was answered by ERROR, or is not a request at all."""


class InotifyUnavailable(WatchmanError):
    """The kernel gives no inotify instance."""


class ForeignRecord(WatchmanError):
    """A line of a transfer log that ProFTPD did not write in our LogFormat, or not whole."""


class Obstructed(WatchmanError):
    """A file cannot be moved as things are: somebody has to change them."""


class BeingWritten(WatchmanError):
    """A file cannot be moved now, for somebody has opened it for writing."""


class Superseded(WatchmanError):
    """A file is not what it was when it was accepted."""


class PausesUnwritable(WatchmanError):
    """What is to be paused cannot be written down, so that nothing changes."""


class Stopped(WatchmanError):
    """The daemon stops, and what takes long is given up."""


class TakesLong(WatchmanError):
    """A file is so large that others would wait for its copy."""


class Refused(WatchmanError):
    """A file is somebody else's, and only linked to where it was found."""

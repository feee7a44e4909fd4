"""Who notices files: ProFTPD's hooks and log, inotify and scans.

In come requests, lines, events and directories; out go notifications, by the `submit` that each is
given. Each has a thread of its own. The daemon alone imports it, and who operates the daemon.
"""

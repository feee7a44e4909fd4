"""inotify: which directories are watched, and what is seen in them.

In come the kernel's events; out go notifications, and requests for scans where events may be
missing. One thread, the watcher's. The transfer log uses `events` to hear of its files.
"""

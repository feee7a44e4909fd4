"""inotify: which directories are watched, and what happens in them.

In come the kernel's events. Out go notifications, and requests for scans where events may be
missing. All of it runs in the watcher's thread. `finders` imports the watcher; the transfer log
imports `events`, to learn that its file has grown.
"""

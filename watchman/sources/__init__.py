"""The sources, which notice files: ProFTPD's hooks and log, inotify, and scans.

In come requests, log lines, events and directory listings. Out go notifications: each source is
given a `submit` to call. Each source has a thread of its own. Only the daemon and `operate` import
this folder, and commands what the folders below name.
"""

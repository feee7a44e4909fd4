"""Reads ProFTPD's transfer log, through every kind of log rotation.

In come lines. Out go notifications, together with a mark of how far the log was read. One thread.
`finders` imports the follower; `check --proftpd` imports `lines`, to know what a line must look
like.
"""

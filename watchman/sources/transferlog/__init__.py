"""ProFTPD's transfer log, whatever becomes of its file.

In come lines; out go notifications with a mark of how far was read, together. One thread.
`check --proftpd` imports `lines` of it, to know what a line must look like.
"""

"""Scans: files that no event told of, found by walking.

In come requests and periods; out go notifications of files that the ledger does not know. One
thread, the scanner's; `walk` and `roots` serve the watcher, too.
"""

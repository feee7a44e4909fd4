"""Scans: walks through the watches, to find files that no event told of.

In come requests for scans, and the periods of the INI file. Out go notifications of files that the
ledger does not know. All of it runs in the scanner's thread. `finders` imports the scanner; the
watcher imports `walk` and `roots`, and runs them in its own thread.
"""

"""Moves files to the destinations that the INI file names.

In come uploads whose files are to be moved. Out go files at their destinations, and a report for
each upload. Each `[move:...]` has two threads, the mover's. Only the daemon imports it.
"""

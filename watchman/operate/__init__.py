"""What an operator sees and does: status, queue, stories, pauses, retries, reloads, the log.

In come queries from the socket; out go answers as `watchman status` and the others show them. Runs
in the listener's thread for queries, `reload` in the main thread. The daemon alone imports it.
"""

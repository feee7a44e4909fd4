"""The operator's view and commands: status, queue, history, pauses, retries, reloads, the log.

In come queries from the socket. Out go the answers that `watchman status` and other commands show.
Runs in the listener's thread for queries, `reload` in the main thread. Only the daemon imports it.
"""

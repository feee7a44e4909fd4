"""The metrics: figures for Prometheus, written to a file that its node_exporter reads.

In come the values of `status` and the steps that were counted. Out go the textfile that `[watchman]
metrics` names, and a file in the spool, from which counting goes on after a restart. It runs in a
thread of its own, and no other thread waits for it. The daemon and `operate` import it.
"""

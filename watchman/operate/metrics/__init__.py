"""The metrics: figures for Prometheus, written to a file that its node_exporter reads.

In come what `status` tells and the steps that were counted. Out go the textfile that `[watchman]
metrics` names, and a file in the spool from which a restart goes on counting. One thread of its
own, for which no other waits. The daemon and `operate` import it.
"""

"""What is on disk before anybody hears of it.

In come records, which `groupcommit` has written in batches, and decisions about files that stay;
out they come again at a start (`journal`, `ledger`). The dispatcher's thread writes, others read.
Imported by `dispatch`, `sinks`, `operate` and the daemon.
"""

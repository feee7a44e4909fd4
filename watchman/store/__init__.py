"""What is written to disk: records in the journal, and decisions about files in the ledgers.

In come records, which `groupcommit` writes in batches, and decisions about the files that stay. A
start reads both again (`journal`, `ledger`). Nobody gets an answer before its record is durable.
The dispatcher's thread writes; other threads may read. `dispatch`, `sinks`, `operate` and the
daemon import this folder.
"""

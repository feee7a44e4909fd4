"""What becomes of an upload: it waits, its file is moved, its task is sent, it is settled.

In come accepted uploads; out go files and tasks. `pipeline` belongs to the dispatcher's thread;
each `[move:...]` and each `[broker:...]` has a thread, which takes from it and reports to it.
Imported by `dispatch`, `operate` and the daemon.
"""

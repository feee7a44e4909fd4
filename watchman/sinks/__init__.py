"""What happens to an accepted upload: it waits, its file is moved, its task is sent, it is settled.

In come accepted uploads. Out go files at their destinations and tasks at their brokers. `pipeline`
belongs to the dispatcher's thread. Each `[move:...]` and each `[broker:...]` has threads of its
own, which take uploads from the pipeline and report to it. `dispatch`, `operate` and the daemon
import this folder.
"""

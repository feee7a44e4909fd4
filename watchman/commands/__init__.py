"""One module for each command of `watchman`, and one for `watchman-send`.

In comes a command line. Out go text or JSON, and an exit code. Each command is a process of its
own. Those that need the daemon ask it over its socket. Only commands import commands.
"""

"""One module for each command of `watchman`, and `watchman-send`.

In comes a command line; out go text or JSON, and an exit code. Processes of their own: they speak
with the daemon by the socket, and nothing imports them.
"""

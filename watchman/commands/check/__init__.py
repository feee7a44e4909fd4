"""`watchman check`: what is looked at, and what is said of it.

In come the settings; out go findings, each OK, WARN or ERROR with what to do. Each module checks
one kind of thing; `check` is the command.
"""

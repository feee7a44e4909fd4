"""The checks that `watchman check` makes, and what it says about each thing.

In come the settings. Out go findings: each is OK, WARN or ERROR, and says what to do. Each module
checks one kind of thing; `check` is the command. It runs in the command's process.
"""

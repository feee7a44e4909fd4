"""Screens: what commands show to people, drawn by rich. One module for each command with a screen.

In come the values that `--json` prints. Out go what rich draws: tables, lists, lines. Commands
import screens late, because rich takes longer to import than a daemon takes to answer. Only
commands import them.
"""

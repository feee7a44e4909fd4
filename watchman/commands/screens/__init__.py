"""What commands show to people: one module for each command with a screen, drawn by rich.

In come the values that `--json` prints. Out go what rich draws: tables, lists, lines. Imported
late, for rich takes longer to import than a daemon takes to answer; only commands import it.
"""

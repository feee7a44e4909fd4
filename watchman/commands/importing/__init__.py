"""`watchman import-config`: the first version's Python files become an INI file.

In come Python files, which are read and never run; out goes the text of an INI file. A process of
its own, as every command.
"""

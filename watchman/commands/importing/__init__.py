"""`watchman import-config`: the first version's Python files become an INI file.

In come Python files, which are read and never run. Out goes the text of an INI file. It runs in the
command's process.
"""

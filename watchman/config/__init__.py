"""The INI file: reads it, checks it as a whole, and finds the sections that a path belongs to.

In comes the INI file (`inifile`). Out go frozen `Settings`, and `Rules` and `places`, which find
the watch, move and task of a path. `locations` finds the INI file, and the daemon's socket without
reading the rest. It runs in the caller's thread. Every folder but `uploads` may import it.
"""

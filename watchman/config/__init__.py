"""What the operator has written in the INI file: read, checked as a whole, and applied to paths.

In comes the INI file (`inifile`). Out go frozen `Settings`, and `Rules` and `places`, which say
which watch, move and task a path belongs to. `locations` finds the INI file, and the daemon's
socket without reading the rest. It runs in the thread that asks. Every folder but `uploads` may
import it.
"""

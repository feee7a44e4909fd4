"""What the operator has written: the INI file, read, checked as a whole, and asked.

In comes the INI file (`inifile`); out go `Settings`, frozen, and `Rules` and `places`, which say
what watch, move and task a path falls under. `locations` finds the file, and the daemon's socket
without the rest of it. Runs in whichever thread asks. Everybody may import it but `uploads`.
"""

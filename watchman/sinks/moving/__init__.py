"""Moves files to where the INI file says.

In come uploads to be moved; out go files at their destinations, and reports. A thread for each
`[move:...]`, the mover's. The daemon alone imports it.
"""

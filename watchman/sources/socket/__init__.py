"""The Unix socket: hooks and commands speak, and are answered.

In come requests of any user; out go notifications and queries, and lines that answer them. One
thread for all peers, one more for queries. Commands import `wire` of it, the language.
"""

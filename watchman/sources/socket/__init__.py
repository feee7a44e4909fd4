"""The Unix socket, on which hooks and commands send requests and get answers.

In come requests, which any user may send. Out go notifications and queries, and a line that answers
each request. One thread serves all peers, another one answers queries. The daemon and `operate`
import it; commands import only `wire`, the protocol.
"""

"""What a notification means: a file is held, an upload, passed over, or has failed.

In come the notifications of all sources. Out go uploads, to the pipeline in `sinks`, and answers
once everything is durable. All runs in the dispatcher's thread, except for the methods `submit...`,
which sources call in theirs. `operate` and the daemon import this folder.
"""

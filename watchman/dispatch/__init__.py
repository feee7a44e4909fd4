"""What a notification means: a file is held, an upload, passed over, or has failed.

In come the notifications of all sources; out go uploads, to the pipeline in `sinks`, and answers
once all is durable. All of it runs in the dispatcher's thread, but for `submit...`. Imported by
the daemon and by who operates it.
"""

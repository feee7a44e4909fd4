"""Sends tasks to brokers, as Celery would.

In come uploads whose tasks are to be sent. Out go messages, which the broker confirms if it can,
and a report for each upload. Each `[broker:...]` has one thread, the publisher's. The daemon and
commands such as `check` import this folder.
"""

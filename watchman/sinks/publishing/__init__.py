"""Sends tasks to brokers, as Celery would.

In come uploads whose task is to be sent; out go messages, confirmed where the broker can, and
reports. A thread for each `[broker:...]`, the publisher's. The daemon imports it, and `check`.
"""

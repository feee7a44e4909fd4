"""Turns every finished upload of an FTP server into one Celery task."""

__version__ = "0.1.0"

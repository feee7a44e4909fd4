"""What `make run` shows: watchman and a stock Celery worker, side by side."""

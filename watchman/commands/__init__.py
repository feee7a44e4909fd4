"""One module per command of `watchman`, and `watchman-send`."""

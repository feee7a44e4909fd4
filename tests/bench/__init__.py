"""Measurements that `make bench` prints: both sides of each in one run, so that ratios travel."""

"""`make soak`: the daemon is killed thousands of times, and what is true then is counted."""

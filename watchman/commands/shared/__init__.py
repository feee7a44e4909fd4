"""What several commands need: asking the daemon, selecting uploads, output, a look at the host."""

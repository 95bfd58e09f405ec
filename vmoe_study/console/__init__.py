"""Progress of running work on the terminal."""

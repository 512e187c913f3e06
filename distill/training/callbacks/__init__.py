"""Lightning callbacks and loggers, one a file."""

"""The command line: configuration, help, run folders and processes."""

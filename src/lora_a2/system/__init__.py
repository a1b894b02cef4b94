"""The interface to the operating system: files, locks, signals, child processes, text for terminals."""

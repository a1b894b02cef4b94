"""What touches the operating system: files, locks, signals, child processes, text for terminals."""

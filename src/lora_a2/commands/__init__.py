"""One module for each command of `lora-a2`, imported when the command is called; each defines `command`."""

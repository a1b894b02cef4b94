"""What a model can be fine-tuned for: one file, or one room, a task. Nothing outside names what a task measures."""

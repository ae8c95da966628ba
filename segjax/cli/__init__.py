"""The commands of `segjax`, one file per command: its arguments and its output."""

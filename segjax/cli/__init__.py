"""The commands of `segjax`: one file each, with its arguments and what it prints."""

"""Images and masks in directories of one's own."""

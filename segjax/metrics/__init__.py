"""Metrics as additive states: one state a batch, added over batches and hosts, then read once."""

"""Metrics: one state per batch, merged over batches and hosts, and computed once at the end."""

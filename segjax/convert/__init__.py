"""Pretrained weights of other programs: one visible table for each source."""

"""Cityscapes semantic: builder."""

"""Conversion of pretrained weights of other frameworks, with one table per source."""

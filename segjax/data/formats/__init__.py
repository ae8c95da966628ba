"""Formats of annotation files that more than one builder reads or writes."""

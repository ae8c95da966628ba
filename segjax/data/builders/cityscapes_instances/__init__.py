"""Cityscapes: street scenes with masks of road users."""

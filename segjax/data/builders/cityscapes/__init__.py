"""Cityscapes: street scenes from a car, with a class for each pixel."""

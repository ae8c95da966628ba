"""Flax Linen layers and backbones that two papers or more use."""

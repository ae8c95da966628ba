"""Flax Linen layers, backbones, necks and heads shared by several models."""

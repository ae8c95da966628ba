"""segjax: image segmentation in JAX and Flax Linen, from a config to a paper's table."""

__version__ = '0.1.0'

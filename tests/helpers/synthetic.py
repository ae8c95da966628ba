"""Synthetic weights, from names alone, and images, so that a golden file need not have them."""

import zlib

import numpy as np


def synthetic(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The array that a PyTorch network calls `name`, f32: the same on every machine.

  Variances and scales of normalization layers are in [0.5, 1.5), other vectors in [-0.5, 0.5),
  and kernels have He's variance, so that activations neither vanish nor grow out of bounds.
  """
  # The stream of RandomState is frozen, unlike that of default_rng.
  x = np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) - 0.5
  if len(shape) > 1:
    x *= 2 * np.sqrt(6 / np.prod(shape[1:]))
  elif name.endswith(('running_var', 'weight')):
    x += 1
  return np.asarray(x, np.float32)


def synthetic_image(padded: tuple[int, int], sizes: tuple) -> np.ndarray:
  """f32[B, 3, H, W]: patches of plain color under noise, zeros beyond each (height, width)."""
  height, width = padded
  shape = (len(sizes), 3, height, width)
  coarse = synthetic('coarse', (*shape[:2], -(-height // 8), -(-width // 8)))
  image = np.kron(coarse, np.ones((8, 8), np.float32))[..., :height, :width]
  image = 10 * (image + 0.2 * synthetic('fine', shape))
  for x, (rows, columns) in zip(image, sizes, strict=True):
    x[:, rows:] = x[:, :, columns:] = 0
  return image

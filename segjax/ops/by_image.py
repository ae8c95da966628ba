"""Functions of single images, applied to a batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

_AXIS = 'data'


def map_images(function: Callable[[Any], Any], images: Any) -> Any:
  """`jax.lax.map`: images one after the other, for results that are large beside an image.

  With a mesh (`jax.set_mesh`) whose axis `data` divides the batch, each device has the images that
  are there, all at the same time. Without, XLA gathers all images on every device.

  Args:
    function: of the arrays of one image.
    images: arrays with a leading axis B.

  Returns:
    Its results, with a leading axis B.
  """
  mapped = functools.partial(jax.lax.map, function)
  devices = jax.sharding.get_abstract_mesh().shape.get(_AXIS, 1)
  batch = jax.tree.leaves(images)[0].shape[0]
  if devices == 1 or batch % devices:
    return mapped(images)
  return jax.shard_map(mapped, in_specs=P(_AXIS), out_specs=P(_AXIS), check_vma=False)(images)

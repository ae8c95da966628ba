"""Rematerialization: the backward pass computes a block again instead of keeping its activations.

Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
"""

from collections.abc import Callable

import flax.linen as nn

from segjax.types import Array


def apply_block(
  apply: Callable[[nn.Module, Array], Array], module: nn.Module, x: Array, *, remat: bool
) -> Array:
  """`apply(module, x)`, of which only `x` is kept for the backward pass.

  Args:
    apply: the block; it may create layers of `module`.
    module: whose variables it uses.
    x: its input.
    remat: False keeps all activations, as without this function.
  """
  return (nn.remat(apply) if remat else apply)(module, x)

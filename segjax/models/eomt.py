"""EoMT: Kerssies, Cavagnero, Hermans, Norouzi, Averta, Leibe, de Geus, "Your ViT is secretly an
image segmentation model", CVPR 2025, arXiv 2503.19108.

A plain ViT whose last L2 blocks also carry Q learned queries (§3.2). Each query predicts a class,
or "no object", and a mask; there is no decoder. One network for semantic, instance and panoptic
segmentation, whose targets differ (§3.1).

In training, each of the L2 blocks masks its attention: a query attends to the patches of the mask
that it predicted before the block. Masks are annealed away during training, one block after the
other, so that inference is that of a plain ViT (§3.3).
"""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.nn import vit
from segjax.nn.conv import Conv, ConvTranspose
from segjax.types import (
  Array,
  Fraction,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveInt,
  Range,
  SegjaxError,
)

# L2 of the paper's networks by the size of the ViT, and of 'tiny', which is ours.
QUERY_BLOCKS = {'tiny': 3, 'small': 3, 'base': 3, 'large': 4, 'giant': 5}
# Exponent of the annealing of masked attention.
_POWER = 0.9


class Prediction(NamedTuple):
  """What the queries predict before a block, or after the last one.

  Attributes:
    classes: f32[B, Q, C + 1], logits; "no object" comes last.
    masks: f32[B, Q, h, w], logits; at a quarter of the height and width for patches of 8 and more.
  """

  classes: Array
  masks: Array


@dataclasses.dataclass(frozen=True)
class MatchingConfig:
  """Keys of `config.model.matching`: how predictions are matched with the ground truth.

  Attributes:
    class_weight, mask_weight, dice_weight: of the terms of the cost.
    points: P, at which masks are compared and supervised.
    oversample: random points of which the least certain are taken, in multiples of P.
    importance: share of the points that is taken by certainty.
  """

  class_weight: NonNegativeFloat = 2.0
  mask_weight: NonNegativeFloat = 5.0
  dice_weight: NonNegativeFloat = 5.0
  points: PositiveInt = 12_544
  oversample: Annotated[float, Range(1)] = 3.0
  importance: Fraction = 0.75


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
  """Keys of `config.model.inference`: how predictions become objects and segments.

  Attributes:
    objects: pairs of a query and a class that are objects, of instance segmentation.
    score_threshold: panoptic queries with at most this score are dropped.
    mask_threshold: panoptic segments have at least this mask probability.
    overlap_threshold: a panoptic query must win more than this part of its own mask.
  """

  objects: PositiveInt = 100
  score_threshold: Fraction = 0.8
  mask_threshold: Fraction = 0.5
  overlap_threshold: Fraction = 0.8


class EoMT(nn.Module):
  """An encoder-only mask transformer.

  Attributes:
    classes: C, without "no object".
    size: of the ViT, see `segjax.nn.vit.SIZES`.
    patch: height and width of a patch, a power of 2.
    queries: Q.
    query_blocks: L2, the last blocks, which carry queries; None for `QUERY_BLOCKS`.
    grid: patches along the height and the width of an image at the training size.
    registers: register tokens of the ViT.
    layer_scale: initial value of LayerScale.
    annealing: (first step, last step) for each of the L2 blocks, between which the share of queries
      whose attention is masked falls from 1 to 0; () for no masked attention.
    matching: see `MatchingConfig`.
    inference: see `InferenceConfig`.
    remat: computes activations of the blocks again in the backward pass, see `segjax.nn.remat`.
    dtype: computation dtype ('float32' or 'bfloat16'); parameters and predictions are float32.

  Raises:
    SegjaxError: `annealing` is not of L2 blocks or does not end after its start, or there are more
      of them than blocks.
  """

  classes: PositiveInt
  size: vit.SizeName = 'base'
  patch: Literal[4, 8, 16, 32] = 16
  queries: PositiveInt = 200
  query_blocks: PositiveInt | None = None
  grid: tuple[PositiveInt, PositiveInt] = (40, 40)
  registers: NonNegativeInt = 4
  layer_scale: Annotated[float, Range(0, open='low')] = 1e-5
  annealing: tuple[tuple[NonNegativeInt, PositiveInt], ...] = ()
  matching: MatchingConfig = MatchingConfig()
  inference: InferenceConfig = InferenceConfig()
  remat: bool = False
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  # Predicts a set of masks with classes; tasks say what is in it (`segjax.tasks.queries`).
  predicts_masks = True
  # Of the functions in `config.losses`, whatever the task.
  losses_module = 'segjax.losses.queries'
  # Without one of each group, a part of the head stays as it is initialized.
  needed_losses = (('query_class',), ('query_mask', 'query_dice'))
  # Keys of `config.model` that training does not read: they can be set for a trained network.
  inference_keys = tuple(f'inference.{field.name}' for field in dataclasses.fields(InferenceConfig))

  def __post_init__(self):
    depth = vit.SIZES[self.size].depth
    if self.blocks_with_queries > depth:
      raise SegjaxError(
        f'config.model.query_blocks={self.query_blocks} must be at most {depth}, the blocks of a '
        f'ViT of the size {self.size}'
      )
    if len(self.annealing) not in (0, self.blocks_with_queries):
      raise SegjaxError(
        f'config.model.annealing has {len(self.annealing)} entries: give one for each of the '
        f'{self.blocks_with_queries} blocks with queries, or none'
      )
    for i, (start, end) in enumerate(self.annealing):
      if start >= end:
        raise SegjaxError(
          f'config.model.annealing[{i}]=({start}, {end}) must be (first step, last step): the '
          'first must be less'
        )
    super().__post_init__()

  @property
  def blocks_with_queries(self) -> int:
    """L2."""
    return self.query_blocks or QUERY_BLOCKS[self.size]

  @nn.compact
  def __call__(
    self,
    image: Array,
    keys: Array | None = None,
    *,
    step: Array | None = None,
    train: bool = False,
  ) -> tuple[Prediction, ...]:
    """The predictions of the queries.

    Args:
      image: f[B, H, W, 3], of which `patch` divides H and W.
      keys: random keys [B], in training, which choose the queries whose mask is left out.
      step: i32[], of training, from 0.
      train: whether to predict before each of the L2 blocks too, with masked attention.

    Returns:
      L2 + 1 predictions in training, and where attention is masked, the last block's at the end;
      else this one alone.
    """
    size, first = vit.SIZES[self.size], vit.SIZES[self.size].depth - self.blocks_with_queries
    embedding = vit.Embedding(
      size.width, self.patch, self.grid, self.registers, self.dtype, name='embedding'
    )
    head = MaskModule(self.classes, size.width, self.patch, self.dtype, name='head')
    grid = image.shape[1] // self.patch, image.shape[2] // self.patch
    query = self.param('query', nn.initializers.normal(1.0), (self.queries, size.width))
    masked = self._masked(step, train)
    block_class = nn.remat(vit.Block) if self.remat else vit.Block
    if not self.is_initializing():  # whose random numbers depend on it
      block_class = nn.jit(block_class)  # one trace for all blocks; XLA inlines them

    x = embedding(image)
    predictions = []
    for i in range(size.depth):
      mask = None
      if i == first:
        x = jnp.concatenate(
          [jnp.broadcast_to(query.astype(x.dtype), (x.shape[0], *query.shape)), x], axis=1
        )
      if i >= first and (train or masked is not None):
        predictions.append(head(x, self.queries, grid))
      if i >= first and masked is not None:
        share, logits = masked[i - first], predictions[-1].masks
        mask = _attention_mask(logits, grid, x.shape[1], share, keys, i)
      x = block_class(size, self.layer_scale, self.dtype, name=f'block{i}')(x, mask)
    return *predictions, head(x, self.queries, grid)

  def _masked(self, step: Array | None, train: bool) -> Array | None:
    """f32[L2], the share of queries whose attention is masked; None for no masked attention.

    Training keeps it as the variable `share` of the collection `masked`, for evaluation.
    """
    shape = (self.blocks_with_queries,)
    if self.annealing and (self.is_initializing() or train or self.has_variable('masked', 'share')):
      share = self.variable('masked', 'share', jnp.ones, shape)
      if train and step is not None:
        share.value = annealed_share(step, self.annealing)
      return share.value
    return None


def annealed_share(step: Array, annealing: tuple[tuple[int, int], ...]) -> Array:
  """f32[L2]: 1 before the first step of each pair, 0 from its last, (1 - progress)^0.9 between."""
  start, end = jnp.asarray(annealing, jnp.float32).T
  progress = (step - start) / (end - start)
  return (1 - jnp.clip(progress, 0, 1)) ** _POWER


def _attention_mask(
  masks: Array, grid: tuple[int, int], tokens: int, share: Array, keys: Array | None, block: int
) -> Array:
  """Which tokens each token attends to.

  A query attends to all queries, to the tokens before the patches, and to the patches where its
  mask logit, bilinear in the patch's center, is positive. All others attend to all.

  Args:
    masks: f32[B, Q, h, w], logits.
    grid: (g, G), of the patches.
    tokens: T, the number of all tokens; queries come first, patches last.
    share: f32[], of the queries that are masked; others attend to all.
    keys: random keys [B] that choose these queries; None for the same in each image.
    block: its index.

  Returns:
    bool[B, T, T].
  """
  batch, queries = masks.shape[:2]
  allowed = center_values(jax.lax.stop_gradient(masks), grid).reshape(batch, queries, -1) > 0
  draw_one = lambda key: jax.random.uniform(jax.random.fold_in(key, block), (queries,))
  if keys is None:
    with jax.ensure_compile_time_eval():  # a constant, which any format of an export has
      draw = draw_one(jax.random.key(0))[None]
  else:
    draw = jax.vmap(draw_one)(keys)
  allowed |= (draw >= share)[..., None]
  rest = jnp.ones((batch, queries, tokens - allowed.shape[-1]), bool)
  others = jnp.ones((batch, tokens - queries, tokens), bool)
  return jnp.concatenate([jnp.concatenate([rest, allowed], 2), others], 1)


def center_values(masks: Array, grid: tuple[int, int]) -> Array:
  """f[B, Q, h, w] -> f[B, Q, *grid], bilinear at the centers of the cells of a coarser grid."""
  for axis, cells in zip((2, 3), grid, strict=True):
    factor = masks.shape[axis] // cells
    if factor > 1:  # even: the center is between the middle two
      parts = jnp.split(
        masks.reshape(*masks.shape[:axis], cells, factor, *masks.shape[axis + 1 :]),
        [factor // 2 - 1, factor // 2, factor // 2 + 1],
        axis=axis + 1,
      )
      masks = ((parts[1] + parts[2]) / 2).squeeze(axis + 1)
  return masks


class MaskModule(nn.Module):
  """Classes and masks of the queries (§3.2, the mask module of Fig. 2).

  The final norm of the ViT, `norm`; `class_logits` on queries; `mask_0` to `mask_2`, an MLP on
  queries; and `upscale_0`, `upscale_1`, … on patches, until these are at a quarter of the image's
  size. A mask is the product of both at each place.

  Attributes:
    classes: C.
    width: D.
    patch: height and width of a patch.
    dtype: computation dtype.
  """

  classes: PositiveInt
  width: PositiveInt
  patch: PositiveInt
  dtype: Any = jnp.float32

  def setup(self):
    dense = lambda features, name: vit.dense(features, self.dtype, name)
    self.norm = vit.LayerNorm(self.dtype)
    self.class_logits = dense(self.classes + 1, None)
    self.mask = [dense(self.width, None) for _ in range(3)]
    self.upscale = [
      Upscale(self.width, self.dtype) for _ in range(max(1, self.patch.bit_length() - 3))
    ]

  def __call__(self, x: Array, queries: int, grid: tuple[int, int]) -> Prediction:
    """From tokens f[B, T, D], of which queries come first and the patches of `grid` last."""
    x = self.norm(x)
    query, patches = x[:, :queries], x[:, -grid[0] * grid[1] :]
    classes = self.class_logits(query)
    for i, layer in enumerate(self.mask):
      query = layer(nn.gelu(query, approximate=False) if i else query)
    patches = patches.reshape(x.shape[0], *grid, self.width)
    for layer in self.upscale:
      patches = layer(patches)
    # Of pixels in a row: XLA transposes arrays of more axes on a CPU before the product.
    pixels = patches.reshape(x.shape[0], -1, self.width)
    masks = jnp.einsum('bqc,bnc->bqn', query, pixels, preferred_element_type=jnp.float32)
    masks = masks.reshape(*query.shape[:2], *patches.shape[1:3])
    return Prediction(classes.astype(jnp.float32), masks)


class Upscale(nn.Module):
  """f[B, h, w, D] -> f[B, 2 h, 2 w, D]: transposed 2 x 2, GELU, depthwise 3 x 3, LayerNorm.

  Attributes:
    width: D.
    dtype: computation dtype.
  """

  width: PositiveInt
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = ConvTranspose(self.width, 2, 2, dtype=self.dtype, name='up')(x)
    x = nn.gelu(x, approximate=False)
    depthwise = Conv(
      self.width,
      (3, 3),
      feature_group_count=self.width,
      use_bias=False,
      dtype=self.dtype,
      name='depthwise',
    )
    return vit.LayerNorm(self.dtype, name='norm')(depthwise(x))

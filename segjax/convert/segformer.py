"""SegFormer and its encoders as transformers saves them.

`transformers/segformer_<size>` is a `model.safetensors` or `pytorch_model.bin` of
`SegformerForSemanticSegmentation`, such as NVIDIA's of ADE20K and Cityscapes, and
`transformers/mit_<size>` one of `SegformerForImageClassification`, of ImageNet.
"""

import functools
from collections.abc import Iterator

import numpy as np

from segjax.convert.eomt import norm_rows
from segjax.convert.table import Row, Source
from segjax.convert.torchvision import (
  COUNTERS,
  INPUT,
  batch_norm_rows,
  layer_rows,
  oihw_to_hwio,
)
from segjax.convert.torchvision_detection import linear
from segjax.nn import mix_transformer as mit

# What is behind the encoder.
_HEAD = r'^(params|batch_stats)/(?!backbone/)'


def fused(x: np.ndarray) -> np.ndarray:
  """[F, 4 F, 1, 1], of the last stage first, -> [4, F, F], of the first stage first."""
  features = len(x)
  if x.shape[1:] != (len(mit.STAGES) * features, 1, 1):
    raise ValueError('not a 1x1 convolution of all stages')
  return x[:, :, 0, 0].T.reshape(-1, features, features)[::-1]


def patches(x: np.ndarray, width: int) -> np.ndarray:
  """[D, C, k, k] -> [k, k, C, D] of this D, by which sizes of equal depths differ."""
  if len(x) != width:
    raise ValueError('of another size')
  return oihw_to_hwio(x)


def encoder_rows(size: mit.SizeName) -> Iterator[Row]:
  """The Mix Transformer."""
  theirs = 'segformer.encoder'
  for i, (width, depth) in enumerate(zip(*mit.SIZES[size], strict=True)):
    stage = f'backbone/stage{i + 1}'
    embedding = f'{theirs}.patch_embeddings.{i}'
    of_width = functools.partial(patches, width=width)
    yield from layer_rows(f'{embedding}.proj', f'{stage}_patches', of_width)
    yield from norm_rows(f'{embedding}.layer_norm', f'{stage}_patches_norm')
    for j in range(depth):
      yield from _block_rows(f'{theirs}.block.{i}.{j}', f'{stage}_block{j}', mit.STAGES[i])
    yield from norm_rows(f'{theirs}.layer_norm.{i}', f'{stage}_norm')


def _block_rows(theirs: str, ours: str, stage: mit.Stage) -> Iterator[Row]:
  attention = f'{theirs}.attention'
  for name in ('query', 'key', 'value'):
    yield from layer_rows(f'{attention}.self.{name}', f'{ours}/attention/{name}', linear)
  yield from layer_rows(f'{attention}.output.dense', f'{ours}/attention/out', linear)
  if stage.reduction > 1:
    yield from layer_rows(f'{attention}.self.sr', f'{ours}/reduce', oihw_to_hwio)
    yield from norm_rows(f'{attention}.self.layer_norm', f'{ours}/reduce_norm')
  for number in (1, 2):
    yield from norm_rows(f'{theirs}.layer_norm_{number}', f'{ours}/norm{number}')
    yield from layer_rows(f'{theirs}.mlp.dense{number}', f'{ours}/mlp/fc{number}', linear)
  yield from layer_rows(f'{theirs}.mlp.dwconv.dwconv', f'{ours}/mlp/depthwise', oihw_to_hwio)


def decoder_rows() -> Iterator[Row]:
  """What `segjax.models.segformer.SegFormer` adds to its encoder."""
  for i in range(len(mit.STAGES)):
    yield from layer_rows(f'decode_head.linear_c.{i}.proj', f'project{i + 1}', linear)
  yield Row('decode_head.linear_fuse.weight', 'params/fuse', fused)
  yield from batch_norm_rows('decode_head.batch_norm', 'fuse_norm')
  yield from layer_rows('decode_head.classifier', 'classifier_score', oihw_to_hwio)


def _input(size: str) -> str:
  return f'{INPUT}, config.model.size={size}'


SOURCES = {
  **{
    f'transformers/segformer_{size}': Source(
      rows=(*encoder_rows(size), *decoder_rows()),
      left_out=(COUNTERS,),
      new=(),
      spare=(),
      input=_input(size),
    )
    for size in mit.SIZES
  },
  **{
    f'transformers/mit_{size}': Source(
      rows=tuple(encoder_rows(size)),
      left_out=(r'^classifier\.',),  # ImageNet's 1000 classes
      new=(_HEAD,),
      spare=(),
      input=_input(size),
    )
    for size in mit.SIZES
  },
}

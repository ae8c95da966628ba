"""EoMT as its authors and as transformers save it, and the encoders of DINOv2 that it starts from.

`eomt/<size>` is a `pytorch_model.bin` of the authors' model zoo (Lightning's names over timm's),
`transformers/eomt_<size>` a `model.safetensors` of `EomtForUniversalSegmentation`, and
`dinov2/<size>` (with register tokens `dinov2/<size>_reg4`) a file of DINOv2's own. Positions are
interpolated where a network sees another number of patches, and the kernel of DINOv2's patches of
14 is resized to the network's, so that the resized patch has the same product with it (FlexiViT,
arXiv 2212.08013, §3.4).
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from segjax.convert.table import Row, Source
from segjax.convert.torchvision import INPUT, layer_rows, oihw_to_hwio, same
from segjax.convert.torchvision_detection import iohw_to_hwio, linear
from segjax.nn import vit

# The published sizes.
SIZES: tuple[vit.SizeName, ...] = ('small', 'base', 'large', 'giant')
# Upscaling blocks for patches of 16.
_UPSCALE = 2
# How much attention is masked is for the training to say.
_MASKED = (r'^masked/',)

Transform = Callable[[np.ndarray], np.ndarray]
Arrays = Mapping[str, np.ndarray]


def token(x: np.ndarray) -> np.ndarray:
  """[1, 1, D] -> [D]."""
  if x.shape[:-1] != (1, 1):
    raise ValueError('not one token')
  return x[0, 0]


def tokens(x: np.ndarray) -> np.ndarray:
  """[1, n, D] -> [n, D]."""
  if x.ndim != 3 or len(x) != 1:
    raise ValueError('not of one image')
  return x[0]


def square(x: np.ndarray) -> np.ndarray:
  """[..., n · n, D] -> [n, n, D]."""
  side = int(round(np.sqrt(x.shape[-2])))
  return x.reshape(side, side, x.shape[-1])


def third(x: np.ndarray, index: int, then: Transform) -> np.ndarray:
  """`then` of the queries, keys or values [D, …] of [3 D, …]."""
  return then(np.split(x, 3)[index])


def attention_rows(theirs: str, ours: str) -> Iterator[Row]:
  """Self-attention with one layer for queries, keys and values."""
  for index, name in enumerate(('query', 'key', 'value')):
    for key, path, then in (('weight', 'kernel', linear), ('bias', 'bias', same)):
      take = functools.partial(third, index=index, then=then)
      yield Row(f'{theirs}.qkv.{key}', f'params/{ours}/{name}/{path}', take)
  yield from layer_rows(f'{theirs}.proj', f'{ours}/out', linear)


def norm_rows(theirs: str, ours: str) -> Iterator[Row]:
  """LayerNorm."""
  yield Row(f'{theirs}.weight', f'params/{ours}/scale', same)
  yield Row(f'{theirs}.bias', f'params/{ours}/bias', same)


def encoder_rows(
  size: vit.SizeName, prefix: str, *, position: Transform, registers: str, mlp: tuple[str, str]
) -> Iterator[Row]:
  """The ViT, by the names that DINOv2 and timm share.

  Args:
    size: see `vit.SIZES`.
    prefix: of their names.
    position: of the learned positions.
    registers: their name, '' for none.
    mlp: names of its two layers.
  """
  yield Row(f'{prefix}cls_token', 'params/embedding/class_token', token)
  if registers:
    yield Row(f'{prefix}{registers}', 'params/embedding/registers', tokens)
  yield Row(f'{prefix}pos_embed', 'params/embedding/position', position)
  yield from layer_rows(f'{prefix}patch_embed.proj', 'embedding/patches', oihw_to_hwio)
  for i in range(vit.SIZES[size].depth):
    theirs, ours = f'{prefix}blocks.{i}', f'block{i}'
    yield from attention_rows(f'{theirs}.attn', f'{ours}/attention')
    for number in (1, 2):
      yield from norm_rows(f'{theirs}.norm{number}', f'{ours}/norm{number}')
      yield Row(f'{theirs}.ls{number}.gamma', f'params/{ours}/scale{number}', same)
      yield from layer_rows(f'{theirs}.mlp.{mlp[number - 1]}', f'{ours}/mlp/fc{number}', linear)
  yield from norm_rows(f'{prefix}norm', 'head/norm')


def head_rows(query: str, classes: str, upscale: str, norm: str, mask: Mapping[int, str]):
  """What EoMT adds to a ViT; arguments are their names."""
  yield Row(f'{query}.weight', 'params/query', same)
  yield from layer_rows(classes, 'head/class_logits', linear)
  for number, name in mask.items():
    yield from layer_rows(name, f'head/mask_{number}', linear)
  for i in range(_UPSCALE):
    theirs, ours = f'{upscale}.{i}', f'head/upscale_{i}'
    yield from layer_rows(f'{theirs}.conv1', f'{ours}/up', iohw_to_hwio)
    yield Row(f'{theirs}.conv2.weight', f'params/{ours}/depthwise/kernel', oihw_to_hwio)
    yield from norm_rows(f'{theirs}.{norm}', f'{ours}/norm')


def authors_source(size: vit.SizeName) -> Source:
  """A `pytorch_model.bin` of the authors' model zoo."""
  rows = (
    *encoder_rows(
      size,
      'network.encoder.backbone.',
      position=square,
      registers='reg_token',
      mlp=('fc1', 'fc2'),
    ),
    *head_rows(
      'network.q',
      'network.class_head',
      'network.upscale',
      'norm',
      {i: f'network.mask_head.{2 * i}' for i in range(3)},
    ),
  )
  left_out = (r'^network\.(attn_mask_probs|encoder\.pixel_(mean|std))$', r'^criterion\.')
  return Source(rows, left_out, new=_MASKED, spare=(), input=_input(size), resized=(_POSITION,))


def transformers_rows(size: vit.SizeName) -> Iterator[Row]:
  """All layers of `EomtForUniversalSegmentation`."""
  token_path = 'params/embedding'
  yield Row('embeddings.cls_token', f'{token_path}/class_token', token)
  yield Row('embeddings.register_tokens', f'{token_path}/registers', tokens)
  yield Row('embeddings.position_embeddings.weight', f'{token_path}/position', square)
  patches = 'embeddings.patch_embeddings.projection'
  yield from layer_rows(patches, 'embedding/patches', oihw_to_hwio)
  names = {'q_proj': 'query', 'k_proj': 'key', 'v_proj': 'value', 'out_proj': 'out'}
  mlp = ('weights_in', 'weights_out') if vit.SIZES[size].swiglu else ('fc1', 'fc2')
  for i in range(vit.SIZES[size].depth):
    theirs, ours = f'layers.{i}', f'block{i}'
    for name, path in names.items():
      yield from layer_rows(f'{theirs}.attention.{name}', f'{ours}/attention/{path}', linear)
    for number in (1, 2):
      yield from norm_rows(f'{theirs}.norm{number}', f'{ours}/norm{number}')
      scale = f'{theirs}.layer_scale{number}.lambda1'
      yield Row(scale, f'params/{ours}/scale{number}', same)
      yield from layer_rows(f'{theirs}.mlp.{mlp[number - 1]}', f'{ours}/mlp/fc{number}', linear)
  yield from norm_rows('layernorm', 'head/norm')
  mask = {i: f'mask_head.fc{i + 1}' for i in range(3)}
  yield from head_rows('query', 'class_predictor', 'upscale_block.block', 'layernorm2d', mask)


def transformers_source(size: vit.SizeName) -> Source:
  """A `model.safetensors` of transformers."""
  left_out = (r'^attn_mask_probs$', r'^criterion\.')
  return Source(
    tuple(transformers_rows(size)),
    left_out,
    new=_MASKED,
    spare=(),
    input=_input(size),
    renamed=((r'\.mlp\.down_proj\.', '.mlp.weights_out.'),),
    prepare=_join_gates,
    resized=(_POSITION,),
  )


def dinov2_source(size: vit.SizeName, *, registers: bool) -> Source:
  """A `…_pretrain.pth` of DINOv2."""
  mlp = ('w12', 'w3') if vit.SIZES[size].swiglu else ('fc1', 'fc2')
  named = 'register_tokens' if registers else ''
  rows = encoder_rows(size, '', position=lambda x: square(x[:, 1:]), registers=named, mlp=mlp)
  return Source(
    tuple(rows),
    left_out=(r'^mask_token$',),
    new=(r'^params/(query$|head/(class_logits|mask_|upscale_))', *_MASKED),
    spare=(),
    input=f'{_input(size)}, config.model.registers={4 if registers else 0}',
    prepare=_add_class_position,
    resized=(_POSITION, _PATCHES),
  )


def _join_gates(arrays: Arrays) -> Arrays:
  """The two halves of SwiGLU's first layer, which files since transformers 5 have apart, as one."""
  joined = dict(arrays)
  for name in arrays:
    other = name.replace('.mlp.gate_proj.', '.mlp.up_proj.')
    if other != name and other in arrays:
      halves = joined.pop(name), joined.pop(other)
      joined[name.replace('gate_proj', 'weights_in')] = np.concatenate(halves)
  return joined


def _add_class_position(arrays: Arrays) -> Arrays:
  """The class token and its position, which is that of no patch, as one."""
  if not {'cls_token', 'pos_embed'} <= arrays.keys():
    return arrays
  return {**arrays, 'cls_token': arrays['cls_token'] + arrays['pos_embed'][:, :1]}


def _input(size: vit.SizeName) -> str:
  return f'{INPUT}, config.model.size={size}'


def resize_positions(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """[h, w, D] -> [*shape[:2], D], see `vit.resize_positions`."""
  return np.asarray(vit.resize_positions(x, shape[:2]))


def resize_patches(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """A kernel [p, p, C, D] for patches of another size: [*shape[:2], C, D].

  For each patch, the product of its resized form with the result is, as nearly as can be, that of
  the patch with `kernel`.
  """
  rows, columns = (_inverse(kernel.shape[i], shape[i]) for i in (0, 1))
  return np.einsum('ia,jb,abcd->ijcd', rows, columns, kernel)


def _inverse(old: int, new: int) -> np.ndarray:
  """f64[new, old]: the pseudoinverse of the transposed matrix that resizes `old` pixels."""
  resize = jax.image.resize(np.eye(old, dtype=np.float32), (new, old), 'cubic', precision='highest')
  return np.linalg.pinv(np.asarray(resize, np.float64).T)


_POSITION = (r'^params/embedding/position$', resize_positions)
_PATCHES = (r'^params/embedding/patches/kernel$', resize_patches)

SOURCES = {
  **{f'eomt/{size}': authors_source(size) for size in SIZES},
  **{f'transformers/eomt_{size}': transformers_source(size) for size in SIZES},
  **{f'dinov2/{size}': dinov2_source(size, registers=False) for size in SIZES},
  **{f'dinov2/{size}_reg4': dinov2_source(size, registers=True) for size in SIZES},
}

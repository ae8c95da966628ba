"""The authors' Caffe files: VGG16, AlexNet, FCN and SegNet, blobs named `layer/i` (`caffe_file`).

Caffe's images are BGR with values from 0 to 255; ours are RGB. The input channels of the first
convolution are reversed, and `input` of each source documents the mean in RGB: FCN and VGG16 for
FCN's recipe subtract `MEAN` (VGG's authors subtracted 123.68, 116.779, 103.939). SegNet uses
unnormalized pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from segjax.convert.table import Row, Source
from segjax.convert.torchvision import oihw_to_hwio
from segjax.models import fcn
from segjax.models.segnet import SegNet
from segjax.nn import alexnet
from segjax.nn.vgg import conv_layers

Transform = Callable[[np.ndarray], np.ndarray]

# ImageNet's RGB mean in FCN's files.
MEAN = (122.67892, 116.66877, 104.00699)

# The convolutions of VGG16, with the same names in Caffe: conv1_1 … conv5_3.
VGG16_LAYERS = tuple(name for stage in conv_layers() for name, _ in stage)
ALEXNET_LAYERS = tuple(layer.name for layer in alexnet.LAYERS)  # conv1 … conv5
# SegNet's, each with a batch normalization (`…_bn`), and the decoder's last one, without.
SEGNET_LAYERS = (*VGG16_LAYERS, *(f'{name}_D' for name in reversed(VGG16_LAYERS[1:])))
SEGNET_CLASSIFIER = 'conv1_1_D'
SEGNET_BASIC_LAYERS = (
  *('conv1', 'conv2', 'conv3', 'conv4'),
  *('conv_decode4', 'conv_decode3', 'conv_decode2', 'conv_decode1'),
)

# FCN's deconvolutions: Caffe's layer -> (our layer, kernel size).
FCN_ALEXNET_UPSCORES = {'upscore': ('upscore32', 63)}
FCN32S_UPSCORES = {'upscore': ('upscore32', 64)}
FCN16S_UPSCORES = {'upscore2': ('upscore2', 4), 'upscore16': ('upscore16', 32)}
FCN8S_UPSCORES = {
  'upscore2': ('upscore2', 4),
  'upscore_pool4': ('upscore_pool4', 4),
  'upscore8': ('upscore8', 16),
}
# Layers of the at-once network that scale a pooled map: scale_pool4 by 0.01, scale_pool3 by 0.0001.
# These are constants in our network.
AT_ONCE_SCALES = tuple((f'scale_pool{s.pool}', s.scale) for s in fcn.VARIANTS['8s-at-once'].skips)

_FCN_INPUT = f'RGB, 0 to 255, minus mean: config.data.mean={MEAN}, config.data.std=(1.0,)'
_SEGNET_INPUT = 'RGB, 0 to 255, as it is: config.data.mean=(0.0,), config.data.std=(1.0,)'
_SEGNET_BASIC_INPUT = f'{_SEGNET_INPUT}, config.model.input_norm=local_response'

_FC = r'^params/fc[67]/'
_FC8 = r'^fc8/'  # ImageNet's 1000 classes
# Parameters of FCN that the encoders do not have, and of SegNet that VGG16 does not have.
_SCORE = (r'^params/(score|upscore)',)
_BEHIND = (*_SCORE, r'_D(_bn)?/', r'^(params|batch_stats)/conv\d_\d_bn/')
# Parameters of a finer FCN that a coarser one does not have.
_FINER = (r'^params/score_pool', r'^params/upscore')


# --- from Caffe's layouts to ours ----------------------------------------------------------------


def vector(x: np.ndarray) -> np.ndarray:
  """Converts to [C], also from [1, 1, 1, C] and [1, C, 1, 1] in older files."""
  if x.size != max(x.shape, default=0):
    raise ValueError('more than one axis')
  return x.reshape(-1).copy()


def bgr_oihw_to_rgb_hwio(x: np.ndarray) -> np.ndarray:
  """Converts the kernel of a convolution on BGR images to RGB."""
  if x.shape[1:2] != (3,):
    raise ValueError('not on three channels')
  return oihw_to_hwio(x[:, ::-1])


def iohw_to_hwio(x: np.ndarray) -> np.ndarray:
  """Converts a deconvolution kernel [in, out, kh, kw] to that of `ops.upsample.conv_transpose`."""
  if x.shape[:1] != x.shape[1:2]:
    raise ValueError('not from all channels to as many')
  return x.transpose(2, 3, 0, 1)


def fc_matrix(x: np.ndarray) -> np.ndarray:
  """The matrix [out, C · h · w] of a fully-connected layer.

  The input is [out, C · h · w], [1, 1, out, C · h · w] in older files, or FCN's convolution kernel
  [out, C, h, w].
  """
  if x.shape[:2] == (1, 1):
    x = x[0, 0]
  return x.reshape(len(x), -1)


def fully_connected(size: int) -> Transform:
  """Converts a fully-connected layer on a `size` x `size` map to a convolution of that size."""

  def kernel(x: np.ndarray) -> np.ndarray:
    matrix = fc_matrix(x)
    return oihw_to_hwio(matrix.reshape(len(matrix), -1, size, size))

  return kernel


def no_mean(x: np.ndarray) -> np.ndarray:
  """The running mean of a batch normalization stored as scale and shift."""
  return np.zeros(x.size)


def unit_variance(x: np.ndarray) -> np.ndarray:
  """Its running variance, which is 1 after adding SegNet's default `bn_epsilon`."""
  return np.full(x.size, 1 - SegNet.bn_epsilon)


# --- layers --------------------------------------------------------------------------------------


def _layer(key: str, name: str, kernel: Transform = oihw_to_hwio) -> Iterator[Row]:
  yield Row(f'{key}/0', f'params/{name}/kernel', kernel)
  yield Row(f'{key}/1', f'params/{name}/bias', vector)


def _norm(name: str) -> Iterator[Row]:
  """SegNet's `BN` in its inference file, written by compute_bn_statistics.py.

  The two blobs are γ / sqrt(var + 1e-9) and β - mean · γ / sqrt(var + 1e-9) over the training set,
  and the layer is y = x · blob 0 + blob 1. They become our scale and bias, with a mean of 0 and a
  variance of 1 minus our epsilon (with a `bn_epsilon` of 1e-9 the scale is too large by 5e-6). A
  training snapshot has the same layout but contains γ and β: its outputs differ, which cannot be
  detected from the file.
  """
  yield Row(f'{name}/0', f'params/{name}/scale', vector)
  yield Row(f'{name}/1', f'params/{name}/bias', vector)
  yield Row(f'{name}/1', f'batch_stats/{name}/mean', no_mean)
  yield Row(f'{name}/0', f'batch_stats/{name}/var', unit_variance)


def _convolutions(names: Sequence[str], *, norm: bool = False) -> Iterator[Row]:
  for name in names:
    yield from _layer(name, name, bgr_oihw_to_rgb_hwio if name == names[0] else oihw_to_hwio)
    if norm:
      yield from _norm(f'{name}_bn')


def _encoder(names: Sequence[str], fc6_size: int) -> tuple[Row, ...]:
  """VGG16 or AlexNet up to fc7."""
  return (
    *_convolutions(names),
    *_layer('fc6', 'fc6', fully_connected(fc6_size)),
    *_layer('fc7', 'fc7', fully_connected(1)),
  )


_VGG16 = _encoder(VGG16_LAYERS, 7)
_ALEXNET = _encoder(ALEXNET_LAYERS, 6)


def _is_bilinear(size: int) -> Callable[[np.ndarray], bool]:
  def check(kernel: np.ndarray) -> bool:
    right_size = kernel.shape[:2] == (size, size)
    return right_size and np.allclose(kernel, fcn.bilinear_init(None, kernel.shape), atol=1e-6)

  return check


def _is_all(value: float) -> Callable[[np.ndarray], bool]:
  return lambda scale: np.allclose(scale, value, rtol=1e-5)


# --- networks ------------------------------------------------------------------------------------


def _fcn(
  encoder: Sequence[Row],
  scores: Sequence[str],
  upscores: Mapping[str, tuple[str, int]],
  scales: Sequence[tuple[str, float]] = (),
  *,
  new: tuple[str, ...] = (),
  variant: str | None = None,
) -> Source:
  """An FCN. Networks with fixed bilinear deconvolutions do not need those of the file, which are
  dropped if they are bilinear, as in the released files.
  """
  return Source(
    rows=(
      *encoder,
      *(row for name in scores for row in _layer(name, name)),
      *(Row(f'{k}/0', f'params/{name}/kernel', iohw_to_hwio) for k, (name, _) in upscores.items()),
      *(Row(f'{key}/0', f'params/{key}/scale', vector) for key, _ in scales),
    ),
    left_out=(),
    new=new,
    spare=(),
    input=_FCN_INPUT + (f', config.model.variant={variant}' if variant else ''),
    constants=(
      *((f'params/{name}/kernel', _is_bilinear(size)) for name, size in upscores.values()),
      *((f'params/{key}/scale', _is_all(value)) for key, value in scales),
    ),
  )


def _segnet(names: Sequence[str], classifier: tuple[str, str], input: str) -> Source:
  rows = (*_convolutions(names, norm=True), *_layer(*classifier))
  return Source(rows=rows, left_out=(), new=(), spare=(), input=input)


_SCORES = ('score_fr', 'score_pool4', 'score_pool3')

SOURCES = {
  # VGG_ILSVRC_16_layers.caffemodel.
  'caffe/vgg16': Source(_VGG16, left_out=(_FC8,), new=_BEHIND, spare=(_FC,), input=_FCN_INPUT),
  # bvlc_reference_caffenet.caffemodel.
  'caffe/alexnet': Source(_ALEXNET, left_out=(_FC8,), new=_SCORE, spare=(), input=_FCN_INPUT),
  # fcn32s-heavy-pascal.caffemodel etc. of voc-fcn32s, 16s, 8s, 8s-atonce and alexnet.
  'caffe/fcn32s': _fcn(_VGG16, _SCORES[:1], FCN32S_UPSCORES, new=_FINER, variant='32s'),
  'caffe/fcn16s': _fcn(_VGG16, _SCORES[:2], FCN16S_UPSCORES, new=_FINER, variant='16s'),
  'caffe/fcn8s': _fcn(_VGG16, _SCORES, FCN8S_UPSCORES, variant='8s'),
  'caffe/fcn8s_at_once': _fcn(
    _VGG16, _SCORES, FCN8S_UPSCORES, AT_ONCE_SCALES, variant='8s-at-once'
  ),
  'caffe/fcn_alexnet': _fcn(_ALEXNET, _SCORES[:1], FCN_ALEXNET_UPSCORES),
  # SegNet-Tutorial's segnet_train.prototxt and segnet_basic_train.prototxt, inference weights.
  'caffe/segnet': _segnet(SEGNET_LAYERS, (SEGNET_CLASSIFIER,) * 2, _SEGNET_INPUT),
  'caffe/segnet_basic': _segnet(
    SEGNET_BASIC_LAYERS, ('conv_classifier', 'conv_classifier'), _SEGNET_BASIC_INPUT
  ),
  # segnet_basic_camvid.caffemodel of the model zoo, and Bayesian SegNet-Basic.
  'caffe/segnet_basic_zoo': _segnet(
    SEGNET_BASIC_LAYERS, ('dense_softmax_inner_prod', 'conv_classifier'), _SEGNET_BASIC_INPUT
  ),
}

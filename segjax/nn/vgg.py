"""VGG's convolutional layers (Simonyan and Zisserman 2015, arXiv 1409.1556, Table 1)."""

from segjax.types import PositiveInt

# (channels, convolutions) per stage; each stage ends in 2x2 max pooling.
Stages = tuple[tuple[PositiveInt, PositiveInt], ...]

# Configuration D. All convolutions are 3x3, padded by 1, with bias and ReLU.
VGG16: Stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def conv_layers(stages: Stages = VGG16) -> tuple[tuple[tuple[str, int], ...], ...]:
  """(name, channels) of each convolution by stage: conv1_1, conv1_2, conv2_1, …

  Named as in the authors' Caffe model, in the order of torchvision's `features`.
  """
  return tuple(
    tuple((f'conv{stage}_{i}', channels) for i in range(1, count + 1))
    for stage, (channels, count) in enumerate(stages, 1)
  )

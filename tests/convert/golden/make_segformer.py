"""Creates segformer.npz, with transformers: python tests/convert/golden/make_segformer.py

Of `SegformerForSemanticSegmentation` in all sizes, with the 150 classes of ADE20K, and of
`SegformerForImageClassification` the names and shapes of their arrays in a file; and the logits of
a narrow network with weights of `synthetic`. Written with torch 2.13.0 and transformers 5.24.0.
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
from safetensors import safe_open
from transformers import (
  PreTrainedModel,
  SegformerConfig,
  SegformerForImageClassification,
  SegformerForSemanticSegmentation,
)

DIRECTORY = pathlib.Path(__file__).parent
sys.path.append(str(DIRECTORY.parents[1] / 'helpers'))

from synthetic import synthetic  # noqa: E402

# Depths, widths and channels of the decoder.
WIDE = [64, 128, 320, 512]
SIZES = {
  'b0': ([2, 2, 2, 2], [32, 64, 160, 256], 256),
  'b1': ([2, 2, 2, 2], WIDE, 256),
  'b2': ([3, 4, 6, 3], WIDE, 768),
  'b3': ([3, 4, 18, 3], WIDE, 768),
  'b4': ([3, 8, 27, 3], WIDE, 768),
  'b5': ([3, 6, 40, 3], WIDE, 768),
  'narrow': ([1, 2, 1, 1], [4, 8, 20, 32], 8),
}
# Height and width of the image: no multiples of 32.
IMAGE = (75, 101)


def config(size: str, classes: int) -> SegformerConfig:
  depths, widths, features = SIZES[size]
  return SegformerConfig(
    num_labels=classes, depths=depths, hidden_sizes=widths, decoder_hidden_size=features
  )


def saved(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
  """Names and shapes in the file of a model, whose names are older than those in memory."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    with safe_open(f'{folder}/model.safetensors', 'np') as file:
      return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@torch.no_grad()
def narrow_logits(image: np.ndarray) -> np.ndarray:
  """f32[1, 3, 19, 26], of weights that a file with the names of `saved` would have."""
  model = SegformerForSemanticSegmentation(config('narrow', 3))
  with tempfile.TemporaryDirectory() as folder:
    model.config.save_pretrained(folder)
    state = {name: synthetic(name, shape) for name, shape in saved(model).items()}
    torch.save({k: torch.tensor(x) for k, x in state.items()}, f'{folder}/pytorch_model.bin')
    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
  return model(torch.tensor(image)).logits.numpy()


def main() -> None:
  networks = {f'segformer_{size}': (SegformerForSemanticSegmentation, size, 150) for size in SIZES}
  networks['segformer_narrow'] = (SegformerForSemanticSegmentation, 'narrow', 3)
  networks |= {
    f'mit_{size}': (SegformerForImageClassification, size, 1000)
    for size in SIZES
    if size != 'narrow'
  }
  arrays = {}
  for name, (kind, size, classes) in networks.items():
    shapes = saved(kind(config(size, classes)))
    arrays[f'{name}/names'] = np.array(list(shapes))
    arrays[f'{name}/shapes'] = np.array(['x'.join(map(str, shape)) for shape in shapes.values()])
  image = synthetic('image', (1, 3, *IMAGE))
  np.savez_compressed(DIRECTORY / 'segformer.npz', **arrays, logits=narrow_logits(image))


if __name__ == '__main__':
  main()

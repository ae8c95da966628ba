"""The input pipeline beside torch's DataLoader with torchvision's transforms v2.

Both read the same JPEG files, written here, and move them in the same ways. What counts is
processor time, of all threads: images a second a core.
"""

import contextlib
import functools
import io
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segjax.data import datasets, pipeline
from segjax.data.config import Augment, BatchConfig, DataConfig, InputConfig, SizeConfig
from speed import commands
from speed.row import Options, Program, Row, Work

# ImageNet's, of pixel values 0 to 255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# Processor seconds in this time below which prepared batches are taken to be all there.
_IDLE, _LOOK = 0.002, 0.05
_CLASSES, _SCALE, _SIGMA, _VOID = 11, (0.75, 1.5), 10.0, 255


# --- files ----------------------------------------------------------------------------------------


def write_dense(root: Path, count: int, size: tuple[int, int]) -> None:
  """images/I.jpg and masks/I.png, with classes in blobs."""
  rng = np.random.default_rng(0)
  for part in ('images', 'masks'):
    (root / part).mkdir(parents=True)
  for i in range(count):
    cv2.imwrite(str(root / f'images/{i:03}.jpg'), photo(rng, size))
    blobs = cv2.resize(rng.random((6, 8)).astype(np.float32), size[::-1])
    cv2.imwrite(str(root / f'masks/{i:03}.png'), (blobs * _CLASSES).astype(np.uint8))


def write_coco(root: Path, count: int, size: tuple[int, int]) -> None:
  """train/I.jpg and train.json in COCO's format, with eight polygons an image."""
  rng = np.random.default_rng(0)
  (root / 'train').mkdir(parents=True)
  images, annotations = [], []
  for i in range(1, count + 1):
    cv2.imwrite(str(root / f'train/{i:03}.jpg'), photo(rng, size))
    images.append({'id': i, 'file_name': f'{i:03}.jpg', 'height': size[0], 'width': size[1]})
    for k in range(8):
      corners = polygon(rng, size)
      low, high = corners.min(0), corners.max(0)
      annotations.append(
        {
          'id': 8 * i + k,
          'image_id': i,
          'category_id': k + 1,
          'bbox': [*low, *(high - low)],
          'area': float(cv2.contourArea(corners.astype(np.float32))),
          'iscrowd': 0,
          'segmentation': [corners.ravel().tolist()],
        }
      )
  categories = [{'id': k + 1, 'name': f'thing {k}'} for k in range(8)]
  content = {'images': images, 'annotations': annotations, 'categories': categories}
  (root / 'train.json').write_text(json.dumps(content))


def photo(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
  """u8[H, W, 3] of the smoothness of a photograph: noise at several scales."""
  image = np.zeros((*size, 3), np.float32)
  for scale in (4, 16, 64, 256):
    side = [max(2, n // (256 // scale)) for n in (256, 256)]
    noise = rng.standard_normal((*side, 3)).astype(np.float32)
    image += cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC) * 60 / scale**0.5
  return (image + 128).clip(0, 255).astype(np.uint8)


def polygon(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
  """f64[24, 2], x and y of the corners of a blob inside the image."""
  radius = np.exp(rng.uniform(np.log(12), np.log(min(size) / 3)))
  angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
  distance = radius * rng.uniform(0.6, 1, 24)
  center = rng.uniform(radius, np.array(size[::-1]) - radius)
  return center + distance[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


# --- programs -------------------------------------------------------------------------------------


def _ours(config: InputConfig, root: Path, batches: int) -> Program:
  """Takes `batches` from the stream, and waits until as many are prepared again."""
  data = config.data
  builder = datasets.load(
    data.name, data.dir, str(root), files=data.files, annotations=config.annotations
  )
  stream = pipeline.train_batches(builder, datasets.spec(builder, config), config, seed=0)

  def run() -> Any:
    taken = [next(stream)[0] for _ in range(batches)]
    settle()
    return summary(taken[0])

  return run


def settle() -> None:
  """Waits until no thread of this process works: until the prepared batches are all there."""
  busy = True
  while busy:
    before = time.process_time()
    time.sleep(_LOOK)
    busy = time.process_time() - before > _IDLE


def summary(batch: Mapping[str, Any]) -> dict[str, Any]:
  """The shape of the images, and of the labels or the number of objects."""
  found = {'image': batch['image'].shape, 'dtype': str(batch['image'].dtype)}
  if 'instances' in batch:
    return {**found, 'objects': int(batch['instances'].valid.sum())}
  return {**found, 'label': batch['label'].shape}


def _theirs(dataset: Any, batch_size: int, batches: int, collate: Any) -> Program:
  """In this process: what a worker of the DataLoader does, with as many threads as it has."""
  import torch

  torch.set_num_threads(1)
  loader = torch.utils.data.DataLoader(
    dataset, batch_size, shuffle=True, drop_last=True, collate_fn=collate
  )
  stream = itertools.chain.from_iterable(itertools.repeat(loader))

  def run() -> Any:
    return [next(stream) for _ in range(batches)][0]

  return run


def _finish_image() -> Any:
  import torch
  from torchvision.transforms import v2

  mean, std = ([value / 255 for value in values] for values in (MEAN, STD))
  return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def _their_dense(root: Path, crop: tuple[int, int]) -> Any:
  """Random scale and crop, flip, and an elastic grid of 3 × 3 nodes as in U-Net's paper."""
  import torch
  from PIL import Image
  from torchvision import tv_tensors
  from torchvision.transforms.v2 import functional as F  # noqa: N812

  paths, finish = sorted((root / 'images').iterdir()), _finish_image()

  class Dense(torch.utils.data.Dataset):
    def __len__(self) -> int:
      return len(paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
      path = paths[index]
      image = tv_tensors.Image(F.pil_to_tensor(Image.open(path).convert('RGB')))
      mask = root / 'masks' / f'{path.stem}.png'
      label = tv_tensors.Mask(F.pil_to_tensor(Image.open(mask)))
      size, scale = image.shape[1:], np.random.uniform(*_SCALE)
      sides = [min(n, round(c / scale)) for n, c in zip(size, crop, strict=True)]
      corner = [np.random.randint(0, n - s + 1) for n, s in zip(size, sides, strict=True)]
      image, label = (F.resized_crop(x, *corner, *sides, crop) for x in (image, label))
      if np.random.random() < 0.5:
        image, label = F.horizontal_flip(image), F.horizontal_flip(label)
      nodes = torch.randn(1, 2, 3, 3) * _SIGMA * 2 / torch.tensor(crop[::-1]).view(1, 2, 1, 1)
      field = torch.nn.functional.interpolate(nodes, crop, mode='bicubic', align_corners=True)
      field = field.permute(0, 2, 3, 1)
      image, label = F.elastic(image, field), F.elastic(label, field, fill=_VOID)
      return finish(image), label[0].long()

  return Dense()


def _their_coco(root: Path, short: int, longest: int) -> Any:
  """Resized to a short side, flipped, with a mask for each object."""
  import torch
  from PIL import Image
  from pycocotools.coco import COCO
  from torchvision import tv_tensors
  from torchvision.transforms import v2
  from torchvision.transforms.v2 import functional as F  # noqa: N812

  with contextlib.redirect_stdout(io.StringIO()):  # it prints
    api = COCO(root / 'train.json')
  ids, finish = sorted(api.imgs), _finish_image()
  move = v2.Compose([v2.Resize(short, max_size=longest, antialias=True), v2.RandomHorizontalFlip()])

  class Objects(torch.utils.data.Dataset):
    def __len__(self) -> int:
      return len(ids)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
      info = api.imgs[ids[index]]
      image = Image.open(root / 'train' / info['file_name']).convert('RGB')
      image = tv_tensors.Image(F.pil_to_tensor(image))
      found = api.loadAnns(api.getAnnIds(imgIds=[info['id']]))
      masks = np.stack([api.annToMask(entry) for entry in found])
      boxes = tv_tensors.BoundingBoxes(
        torch.tensor([entry['bbox'] for entry in found]),
        format='XYWH',
        canvas_size=image.shape[1:],
      )
      image, boxes, masks = move(image, boxes, tv_tensors.Mask(torch.as_tensor(masks)))
      labels = torch.tensor([entry['category_id'] for entry in found])
      return finish(image), {'boxes': boxes, 'masks': masks, 'labels': labels}

  return Objects()


# --- rows -----------------------------------------------------------------------------------------


def _dense(options: Options) -> Work:
  count, size, crop, batch, batches = options.pick(
    (48, (360, 480), (256, 256), 8, 12), (4, (40, 48), (32, 32), 2, 2)
  )
  root = commands.scratch()
  write_dense(root / 'raw', count, size)
  data = DataConfig(
    name='folder',
    dir=str(root / 'prepared'),
    files={'classes': tuple(f'class {k}' for k in range(_CLASSES)), 'splits': {'train': 1.0}},
    mean=MEAN,
    std=STD,
    size=SizeConfig(crop_size=crop),
  )
  augment = Augment(flip_horizontal=0.5, scale=_SCALE, elastic_sigma=_SIGMA)
  run = _ours(InputConfig(data, augment, BatchConfig(size=batch)), root / 'raw', batches)
  if not options.peers:
    return Work(run)
  their = _theirs(_their_dense(root / 'raw', crop), batch, batches, None)

  def same(found: list, others: Mapping[str, list]) -> str:
    image, label = others['torchvision v2'][0]
    assert (image.shape[0], *image.shape[2:], 3) == found[0]['image'], image.shape
    assert tuple(label.shape) == found[0]['label'], label.shape
    return f'batches of {batch} × {crop[0]} × {crop[1]}, images of ours {found[0]["dtype"]}'

  return Work(run, {'torchvision v2': their}, same)


def _coco(options: Options) -> Work:
  count, size, short, batches = options.pick((24, (480, 640), 800, 12), (4, (48, 64), 64, 2))
  longest, batch = 1333 * short // 800, 2
  root = commands.scratch()
  write_coco(root / 'raw', count, size)
  data = DataConfig(
    name='coco_instances/custom',
    dir=str(root / 'prepared'),
    mean=MEAN,
    std=STD,
    size=SizeConfig(short_side=(short,), longest_side=longest, interpolation='bilinear'),
  )
  config = InputConfig(
    data, Augment(flip_horizontal=0.5), BatchConfig(size=batch), annotations=('objects',)
  )
  run = _ours(config, root / 'raw', batches)
  if not options.peers:
    return Work(run)
  collate = lambda parts: tuple(zip(*parts, strict=True))
  their = _theirs(_their_coco(root / 'raw', short, longest), batch, batches, collate)

  def same(found: list, others: Mapping[str, list]) -> str:
    images, targets = others['torchvision v2'][0]
    # Ours are padded to multiples of 32.
    sides = [32 * -(-n // 32) for n in images[0].shape[1:]]
    assert (batch, *sides, 3) == found[0]['image'], (images[0].shape, found[0])
    objects = sum(len(target['masks']) for target in targets)
    assert objects == found[0]['objects'], (objects, found[0])
    return f'{objects} masks in a batch of {batch} images, images of ours {found[0]["dtype"]}'

  return Work(run, {'torchvision v2': their}, same)


_TIMES = functools.partial(Row, target=1.5, value='times', reads='processor', unit='s')
ROWS = {
  'pipeline_dense': _TIMES(
    'crop, flip, scale, elastic deformation; 96 images of 360 × 480, processor time', _dense
  ),
  'pipeline_coco': _TIMES(
    'short side 800, flip, masks; 24 images of 480 × 640, processor time', _coco
  ),
}

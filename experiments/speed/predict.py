"""`segjax predict` on files, beside its network alone."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from segjax import run as run_lib
from segjax.training import compile as compile_lib
from segjax.workdir import Workdir
from speed import commands, pipeline
from speed.row import Options, Row, Work

_PACE = re.compile(r'(\d+) images, ([\d.e+-]+) images/s')


def _predict(options: Options) -> Work:
  """Seconds an image, after the first, which compiles: both programs return them."""
  count, size, width = options.pick((100, (360, 480), 16), (4, (32, 48), 2))
  root = commands.scratch()
  (root / 'images').mkdir()
  rng = np.random.default_rng(0)
  for i in range(count):
    cv2.imwrite(str(root / f'images/{i:03}.jpg'), pipeline.photo(rng, size))
  overrides = {
    'data.name': 'scenes/tiny',
    'data.size.image_size': size,
    'model.width': width,
    'batch.size': 1,
    'optim.warmup_steps': 0,
    'train.steps': 1,
  }
  written: list[Path] = []

  def trained() -> Path:
    if not (root / 'run').exists():
      arguments = commands.train_arguments('unet/scenes', root / 'run', root / 'data', overrides)
      commands.segjax(*arguments)
    return root / 'run'

  def run() -> float:
    out = root / f'out{len(written)}'
    text = commands.segjax(
      'predict', f'--workdir={trained()}', f'--images={root / "images"}', f'--output={out}'
    )
    found = _PACE.search(text)
    assert found, text
    assert int(found[1]) == count, text
    written.append(out)
    return 1 / float(found[2])

  def network() -> float:
    loaded = run_lib.load_run(Workdir(str(trained())))
    task = loaded.run.task
    image = np.zeros((1, *size, loaded.run.spec.channels), np.float32)

    @compile_lib.jit
    def forward(variables: Any, batch: Any) -> Any:
      outputs, _ = task.forward(variables, batch, train=False)
      return task.predict(outputs, batch)['label']

    variables, batch = jax.device_put((loaded.variables, {'image': image}))
    jax.block_until_ready(forward(variables, batch))
    start = time.perf_counter()
    for _ in range(count):
      jax.block_until_ready(forward(variables, batch))
    return (time.perf_counter() - start) / count

  def same(found: list, others: Mapping[str, list]) -> str:
    labels = len(list(written[-1].glob('**/*.png')))
    assert labels >= count, written
    return f'{count} images read, predicted, drawn and written'

  return Work(run, {'the network alone': network}, same)


ROWS = {
  'predict': Row(
    'segjax predict on 100 JPEG files of 360 × 480, U-Net of the demo',
    _predict,
    0.8,
    value='times',
    reads='result',
    rounds=5,
    first=1,
  ),
}

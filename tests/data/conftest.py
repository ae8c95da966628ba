"""Data sets made of given arrays, written and read back by TFDS."""

import io
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small_datasets import (
  ISTHING,
  OBJECT_FEATURES,
  OBJECT_SIZES,
  SEGMENT_FEATURES,
  SEGMENT_SIZES,
  object_example,
  segment_example,
)


@pytest.fixture(scope='session')
def png() -> Callable[[np.ndarray], bytes]:
  """Encodes [H, W], [H, W, 1] or [H, W, 3]."""

  def encode(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).save(buffer, 'PNG')
    return buffer.getvalue()

  return encode


@pytest.fixture(scope='session')
def write_dataset() -> Callable[..., tfds.core.DatasetBuilder]:
  """Prepares a data set from examples as features want them, and returns its builder."""

  def write(
    data_dir: Any,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    metadata: Mapping[str, Any] | None = None,
    name: str = 'tiny',
    version: str = '1.0.0',
  ) -> tfds.core.DatasetBuilder:
    def info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(metadata) if metadata else None,
      )

    def generate(self, split):
      yield from enumerate(splits[split])

    members = {
      'name': name,
      'VERSION': tfds.core.Version(version),
      '_info': info,
      '_split_generators': lambda self, manager: {s: self._generate_examples(s) for s in splits},
      '_generate_examples': generate,
    }
    builder_class = types.new_class(
      'Builder',
      (tfds.core.GeneratorBasedBuilder,),
      {'skip_registration': True},
      lambda namespace: namespace.update(members),
    )
    builder = builder_class(data_dir=data_dir)
    builder.download_and_prepare(
      file_format='array_record',
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
    return builder

  return write


@pytest.fixture(scope='session')
def objects_builder(write_dataset, tmp_path_factory) -> tfds.core.DatasetBuilder:
  """See `small_datasets.object_example`."""
  examples = [object_example(i) for i in range(len(OBJECT_SIZES))]
  return write_dataset(
    tmp_path_factory.mktemp('objects'), OBJECT_FEATURES, {'train': examples, 'val': examples[:5]}
  )


@pytest.fixture(scope='session')
def segments_builder(write_dataset, tmp_path_factory) -> tfds.core.DatasetBuilder:
  """See `small_datasets.segment_example`."""
  examples = [segment_example(i) for i in range(len(SEGMENT_SIZES))]
  return write_dataset(
    tmp_path_factory.mktemp('segments'),
    SEGMENT_FEATURES,
    {'train': examples, 'val': examples},
    metadata={'isthing': ISTHING, 'category_ids': [0, 10, 20, 30]},
  )

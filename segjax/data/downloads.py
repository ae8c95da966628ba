"""Where the raw files of published data sets come from.

An address is upstream's own. Digests are those that TFDS (SHA-256) and torchvision (MD5) publish
for the same files; a file without one is checked by the length that the server states, and by
unpacking. No address was reached from the machines that segjax is developed on.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from segjax import download
from segjax.download import Remote
from segjax.types import SegjaxError


@dataclasses.dataclass(frozen=True)
class Archive:
  """An archive of raw files.

  Attributes:
    remote: its address.
    into: the directory to unpack it into, below the data set's.
    inner: archives in it that are unpacked in their places, paths below `into`.
  """

  remote: Remote
  into: str = ''
  inner: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
  """The raw files of a data set.

  Attributes:
    directory: below the directory of downloads; data sets of the same images share it.
    archives: all that it consists of.
    holds: a file or directory in the directory of raw files; that directory may be in another one.
    terms: of use, in a few words.
  """

  directory: str
  archives: tuple[Archive, ...]
  holds: str
  terms: str


@dataclasses.dataclass(frozen=True)
class Manual:
  """A data set that only its owner hands out.

  Attributes:
    steps: what to do, as the end of a sentence.
    terms: as in `Source`.
  """

  steps: str
  terms: str


_COCO = 'http://images.cocodataset.org'
_COCO_TERMS = 'annotations CC BY 4.0, images under the terms of Flickr'
_COCO_IMAGES = (
  Archive(
    Remote(
      f'{_COCO}/zips/train2017.zip',
      'sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929',
      19_336_861_798,
    )
  ),
  Archive(
    Remote(
      f'{_COCO}/zips/val2017.zip',
      'sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05',
      815_585_330,
    )
  ),
)
_VOC = 'http://host.robots.ox.ac.uk/pascal/VOC'
_VOC_TERMS = 'images under the terms of Flickr'
_PETS = 'https://thor.robots.ox.ac.uk/~vgg/data/pets'
_CELLS = 'http://data.celltrackingchallenge.net/training-datasets'
_CELLS_TERMS = 'free for research, cite the Cell Tracking Challenge'
_U373 = Source(
  directory='phc_u373',
  archives=(Archive(Remote(f'{_CELLS}/PhC-C2DH-U373.zip')),),
  holds='PhC-C2DH-U373',
  terms=_CELLS_TERMS,
)
_HELA = Source(
  directory='dic_hela',
  archives=(Archive(Remote(f'{_CELLS}/DIC-C2DH-HeLa.zip')),),
  holds='DIC-C2DH-HeLa',
  terms=_CELLS_TERMS,
)
_CITYSCAPES = Manual(
  steps='register at https://www.cityscapes-dataset.com, download leftImg8bit_trainvaltest.zip '
  '(11 GB) and gtFine_trainvaltest.zip (241 MB), unpack both into one directory and name it with '
  '--source',
  terms='free for non-commercial use, no redistribution',
)
_ADE20K_TERMS = 'non-commercial research and education'
_ADE20K = Archive(Remote('http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip'))
_ADE20K_OBJECTS = Manual(
  steps=f'unpack {_ADE20K.remote.url}, unpack '
  'http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar in its '
  "directory ADEChallengeData2016, run Mask2Former's datasets/prepare_ade20k_pan_seg.py or "
  'prepare_ade20k_ins_seg.py, and name ADEChallengeData2016 with --source',
  terms=_ADE20K_TERMS,
)

# By name and config, or by name alone for all configs.
SOURCES: dict[str, Source | Manual] = {
  'penn_fudan': Source(
    directory='penn_fudan',
    archives=(Archive(Remote('https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip')),),
    holds='PNGImages',
    terms='see https://www.cis.upenn.edu/~jshi/ped_html/',
  ),
  'voc/2011': Source(
    directory='voc2011',
    archives=(
      Archive(
        Remote(
          f'{_VOC}/voc2011/VOCtrainval_25-May-2011.tar', 'md5:6c3384ef61512963050cb5d687e5bf1e'
        )
      ),
    ),
    holds='VOCdevkit',
    terms=_VOC_TERMS,
  ),
  'voc/2012': Source(
    directory='voc2012',
    archives=(
      Archive(
        Remote(
          f'{_VOC}/voc2012/VOCtrainval_11-May-2012.tar',
          'sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb',
          1_999_639_040,
        )
      ),
    ),
    holds='VOCdevkit',
    terms=_VOC_TERMS,
  ),
  'sbd': Source(
    directory='sbd',
    archives=(
      Archive(
        Remote(
          'https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/'
          'benchmark.tgz',
          'md5:82b4d87ceb2ed10f6038a1cba92111cb',
        )
      ),
    ),
    holds='benchmark_RELEASE',
    terms=_VOC_TERMS,
  ),
  'coco_instances/2017': Source(
    directory='coco2017',
    archives=(
      *_COCO_IMAGES,
      Archive(
        Remote(
          f'{_COCO}/annotations/annotations_trainval2017.zip',
          'sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268',
          252_907_541,
        )
      ),
    ),
    holds='annotations',
    terms=_COCO_TERMS,
  ),
  'coco_panoptic/2017': Source(
    directory='coco2017',
    archives=(
      *_COCO_IMAGES,
      Archive(
        Remote(
          f'{_COCO}/annotations/panoptic_annotations_trainval2017.zip',
          'sha256:c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370',
          860_725_834,
        ),
        inner=('annotations/panoptic_train2017.zip', 'annotations/panoptic_val2017.zip'),
      ),
    ),
    holds='annotations',
    terms=_COCO_TERMS,
  ),
  'ade20k': Source(
    directory='ade20k', archives=(_ADE20K,), holds='annotations', terms=_ADE20K_TERMS
  ),
  'isbi2012': Source(
    directory='isbi2012',
    archives=(Archive(Remote('https://downloads.imagej.net/ISBI-2012-challenge.zip')),),
    holds='train-volume.tif',
    terms='non-commercial use',
  ),
  'oxford_iiit_pet': Source(
    directory='oxford_iiit_pet',
    archives=(
      Archive(
        Remote(
          f'{_PETS}/images.tar.gz',
          'sha256:67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d',
          791_918_971,
        )
      ),
      Archive(
        Remote(
          f'{_PETS}/annotations.tar.gz',
          'sha256:52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91',
          19_173_078,
        )
      ),
    ),
    holds='annotations',
    terms='CC BY-SA 4.0',
  ),
  **dict.fromkeys(('cell_tracking/phc_u373', 'cell_tracking/phc_u373_silver'), _U373),
  **dict.fromkeys(('cell_tracking/dic_hela', 'cell_tracking/dic_hela_silver'), _HELA),
  **dict.fromkeys(('ade20k_panoptic', 'ade20k_instances'), _ADE20K_OBJECTS),
  **dict.fromkeys(('cityscapes', 'cityscapes_instances', 'cityscapes_panoptic'), _CITYSCAPES),
}


def find(name: str, config: str | None = None) -> Source | Manual | None:
  """Where the raw files of a builder's data set come from; None if there is no public address."""
  return SOURCES.get(f'{name}/{config}') or SOURCES.get(name)


def available(source: Source, downloads: Path) -> bool:
  """Whether all of it is downloaded and unpacked."""
  root = downloads / source.directory
  return all(_mark(root, archive).exists() for archive in source.archives)


def spell_size(source: Source) -> str:
  """The size of all archives in words."""
  sizes = [archive.remote.size for archive in source.archives]
  total = None if None in sizes else sum(sizes)
  return dataclasses.replace(source.archives[0].remote, size=total).spell_size()


def get(
  source: Source,
  downloads: Path,
  *,
  offline: bool = False,
  report: Callable[[str], None] | None = None,
) -> Path:
  """The directory of raw files of a data set; what is missing of it is downloaded and unpacked.

  Args:
    source: the data set.
    downloads: the directory of all downloads.
    offline, report: as in `download.fetch`.

  Raises:
    SegjaxError: an archive cannot be downloaded, is another file, or does not hold the raw files.
  """
  root = downloads / source.directory
  report = report or (lambda _: None)
  if not available(source, downloads):
    report(f'terms of use: {source.terms}')
  root.mkdir(parents=True, exist_ok=True)
  with download.lock(root / 'archives'):
    for archive in source.archives:
      if _mark(root, archive).exists():
        continue
      path = download.fetch(archive.remote, root, offline=offline, report=report)
      report(f'unpacking {path}')
      _unpack(path, root / archive.into, archive.inner)
      # The mark comes last: what a killed process left is unpacked again.
      _mark(root, archive).parent.mkdir(exist_ok=True)
      _mark(root, archive).touch()
  return _raw_files(root, source.holds)


def _mark(root: Path, archive: Archive) -> Path:
  """The file that says that an archive is unpacked, so that the archive may be deleted."""
  return root / '.unpacked' / archive.remote.name


def _unpack(path: Path, directory: Path, inner: tuple[str, ...]) -> None:
  download.unpack(path, directory)
  for name in inner:
    if not (directory / name).is_file():
      raise SegjaxError(f'{path} does not hold {name}: delete it and download it again')
    download.unpack(directory / name, (directory / name).parent)
    (directory / name).unlink()


def _raw_files(root: Path, holds: str) -> Path:
  """The highest directory, `root` or up to two levels below it, that has `holds`."""
  for pattern in (holds, f'*/{holds}', f'*/*/{holds}'):
    found = [path for path in root.glob(pattern) if not _is_hidden(path.relative_to(root))]
    if found:
      return min(found).parent
  raise SegjaxError(f'{root} does not hold {holds}: delete it, to download it again')


def _is_hidden(path: Path) -> bool:
  return any(part.startswith('.') for part in path.parts)

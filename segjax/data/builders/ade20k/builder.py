"""ADE20K semantic segmentation, in the 150 classes of the scene parsing challenge (SceneParse150).

20,210 train and 2,000 val images of many sizes; the label of each pixel is one of 150 classes, or
void. Raw files are the directories `images` and `annotations` of ADEChallengeData2016.zip, see
`segjax.data.builders.ade20k_files`; `data.source` is the directory that holds them. The labels of
`scene_parse150` in tensorflow-datasets are others: those of annotations_instance.tar.

Classes are in upstream's order, its value 1 first, under the first of upstream's names. Images are
stored byte for byte, gray ones too.

Cite Zhou et al., "Scene parsing through ADE20K dataset", CVPR 2017. Images and annotations are for
non-commercial research and education, see https://groups.csail.mit.edu/vision/datasets/ADE20K/.
"""

from pathlib import Path

from segjax.data.builders import ade20k_files, raw
from segjax.types import SegjaxError


class Builder(raw.SemanticBuilder):
  """Prepares the classes of ADE20K."""

  description = 'Scenes with one of 150 classes for each pixel: 20,210 train, 2,000 val.'
  content = 'images/{training,validation}/ and annotations/{training,validation}/'
  classes = [category.name for category in ade20k_files.CATEGORIES]
  palette = [category.color for category in ade20k_files.CATEGORIES]
  first = 1
  void = 0
  modes = ('RGB', 'L')

  def find_files(self, source: Path) -> dict[str, list[raw.Files]]:
    return {
      split: self._find_split(source, name) for split, name in ade20k_files.DIRECTORIES.items()
    }

  def _find_split(self, source: Path, name: str) -> list[raw.Files]:
    images, labels = source / 'images' / name, source / 'annotations' / name
    found = sorted(path.stem for path in images.glob('*.jpg'))
    if not found:
      raise raw.wrong_source(f'{images} has no images', self.content)
    labeled = {path.stem for path in labels.glob('*.png')}
    if odd := labeled.symmetric_difference(found):
      missing = images / f'{min(odd)}.jpg' if min(odd) in labeled else labels / f'{min(odd)}.png'
      raise SegjaxError(
        f'{len(odd)} images of {name} lack their image or their label, such as {missing}: unpack '
        'the archive again'
      )
    return raw.files_of(found, source, f'images/{name}/{{}}.jpg', f'annotations/{name}/{{}}.png')

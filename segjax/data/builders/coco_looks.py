"""What a JSON file is that is not in the COCO format that is wanted: for the error message."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Look(NamedTuple):
  """A format.

  Attributes:
    what: it is.
    remedy: what to do instead.
    matches: whether a file's content is of it, given the content and the first of its entries.
  """

  what: str
  remedy: str
  matches: Callable[[Any, Mapping[str, Any]], bool]


def _first(value: Any) -> Mapping[str, Any]:
  """The first entry of a list of dicts, else an empty one."""
  return value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}


def _has(content: Any, *keys: str) -> bool:
  return isinstance(content, dict) and set(keys) <= content.keys()


def _is_via(content: Any, first: Mapping[str, Any]) -> bool:
  del first
  if _has(content, '_via_img_metadata'):
    return True
  values = list(content.values())[:1] if isinstance(content, dict) else []
  return bool(values) and _has(values[0], 'filename', 'regions')


def _annotation(content: Any) -> Mapping[str, Any]:
  return _first(content.get('annotations')) if isinstance(content, dict) else {}


_EXPORT = 'export the project as COCO'
_LOOKS = (
  Look(
    "LabelMe's annotation of one image",
    'set config.data.name=labelme',
    lambda content, first: _has(content, 'shapes', 'imagePath'),
  ),
  Look('a project of VIA (VGG Image Annotator)', _EXPORT, _is_via),
  Look(
    'GeoJSON',
    'convert its coordinates to pixels of images, in COCO format',
    lambda content, first: _has(content, 'type') and content['type'] == 'FeatureCollection',
  ),
  Look(
    "Label Studio's own JSON",
    _EXPORT,
    lambda content, first: 'annotation_id' in first or {'data', 'annotations'} <= first.keys(),
  ),
  Look(
    "a detector's results in COCO format",
    'name the file of the annotations',
    lambda content, first: {'image_id', 'score'} <= first.keys(),
  ),
  Look("CreateML's JSON", _EXPORT, lambda content, first: {'image', 'annotations'} <= first.keys()),
  Look(
    "Supervisely's annotation of one image",
    _EXPORT,
    lambda content, first: _has(content, 'objects', 'size'),
  ),
  Look("Datumaro's JSON", _EXPORT, lambda content, first: _has(content, 'items', 'categories')),
  Look(
    "COCO's captions",
    'name the file of the instances',
    lambda content, first: 'caption' in _annotation(content),
  ),
)
_PANOPTIC = Look(
  'in COCO panoptic format',
  'set config.data.name=coco_panoptic/custom',
  lambda content, first: 'segments_info' in _annotation(content),
)
_INSTANCES = Look(
  'in COCO instance format',
  'set config.data.name=coco_instances/custom, with config.data.files.classes and stuff',
  lambda content, first: {'bbox', 'segmentation'} & _annotation(content).keys() != set(),
)


def looks_like(content: Any, kind: str) -> Look | None:
  """The format of a file's content, where it is another than `kind`; None for an unknown one.

  Args:
    content: of the JSON file.
    kind: 'instances' or 'panoptic'.
  """
  other = {'instances': _PANOPTIC, 'panoptic': _INSTANCES}[kind]
  first = _first(content)
  return next((look for look in (*_LOOKS, other) if look.matches(content, first)), None)

"""Data sets whose raw files are downloaded: the table, and from a local server to prepared data."""

import hashlib
import io
import re
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from segjax.data import datasets, downloads
from segjax.data.downloads import Archive, Manual, Source
from segjax.download import Remote
from segjax.types import SegjaxError

IN_TABLE = {key: s for key, s in downloads.SOURCES.items() if isinstance(s, Source)}


def zipped(members):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as file:
    for name, content in members.items():
      file.writestr(name, content)
  return buffer.getvalue()


def tarred(members):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as file:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      file.addfile(info, io.BytesIO(content))
  return buffer.getvalue()


def encode(pixels, kind='PNG', **kwargs):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind, **kwargs)
  return buffer.getvalue()


def moved(server, source):
  """A source with the addresses of a local server, without digests and sizes."""
  archives = tuple(
    Archive(Remote(f'{server.url}/{a.remote.name}'), a.into, a.inner) for a in source.archives
  )
  return Source(source.directory, archives, source.holds, source.terms)


# --- the table ------------------------------------------------------------------------------------


def test_data_sets_of_the_table_exist():
  for key in downloads.SOURCES:
    name, _, config = key.partition('/')
    if name == 'cityscapes' and name not in datasets.own_names():
      continue
    builder_class = datasets._own_class(name)
    assert not config or config in builder_class.builder_configs, key
    assert downloads.find(name, config) is downloads.SOURCES[key]
  assert downloads.find('voc') is None and downloads.find('coco_instances', 'custom') is None
  assert downloads.find('penn_fudan', 'fold3') is downloads.SOURCES['penn_fudan']


@pytest.mark.parametrize('source', IN_TABLE.values(), ids=IN_TABLE)
def test_addresses_and_digests_have_their_form(source):
  for archive in source.archives:
    remote = archive.remote
    assert re.fullmatch(r'https?://[\w./~-]+\.(zip|tar|tgz|tar\.gz)', remote.url)
    assert remote.digest is None or re.fullmatch(
      'sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}', remote.digest
    )
  assert source.terms and len({a.remote.name for a in source.archives}) == len(source.archives)


def test_digests_are_those_of_tfds():
  """Files that TFDS has too, at the same address or at a mirror's, have its size and SHA-256."""
  from tensorflow_datasets.core.download import checksums
  from tensorflow_datasets.core.utils import resource_utils

  root = resource_utils.tfds_path()
  listed = {}
  for name in ('url_checksums/voc.txt', 'url_checksums/coco.txt'):
    listed |= checksums.load_url_infos(root / name)
  listed |= checksums.load_url_infos(root / 'datasets/oxford_iiit_pet/checksums.tsv')
  known = {url.rpartition('/')[2]: info for url, info in listed.items()}
  remotes = [a.remote for source in IN_TABLE.values() for a in source.archives]
  compared = [remote for remote in remotes if remote.name in known]
  assert len({remote.name for remote in compared}) == 7
  for remote in compared:
    info = known[remote.name]
    assert (remote.digest, remote.size) == (f'sha256:{info.checksum}', int(info.size))


def test_the_page_has_every_address(root):
  text = (root / 'docs' / 'data.md').read_text()
  for source in IN_TABLE.values():
    assert not [a.remote.url for a in source.archives if a.remote.url not in text]


# --- download and unpack --------------------------------------------------------------------------


def test_archives_are_unpacked_once(server, tmp_path):
  inner = zipped({'pan/1.png': b'1'})
  server.files = {
    '/images.zip': zipped({'train/1.jpg': b'1'}),
    '/labels.zip': zipped({'annotations/pan.json': b'{}', 'annotations/pan.zip': inner}),
  }
  archives = (
    Archive(Remote(f'{server.url}/images.zip')),
    Archive(Remote(f'{server.url}/labels.zip'), inner=('annotations/pan.zip',)),
  )
  source, reports = Source('made', archives, 'annotations', 'free'), []
  found = downloads.get(source, tmp_path, report=reports.append)
  assert found == tmp_path / 'made'
  assert (found / 'annotations' / 'pan' / '1.png').read_bytes() == b'1'
  assert not (found / 'annotations' / 'pan.zip').exists()
  assert reports[0] == 'terms of use: free' and len(reports) == 5

  # The archives may be deleted then.
  for name in ('images.zip', 'labels.zip'):
    (found / name).unlink()
  assert downloads.available(source, tmp_path)
  assert downloads.get(source, tmp_path, offline=True, report=reports.append) == found
  assert len(server.requests) == 2 and len(reports) == 5

  # Of what another data set has too, only the rest is downloaded.
  server.files['/more.zip'] = zipped({'more': b''})
  more = Source('made', (archives[0], Archive(Remote(f'{server.url}/more.zip'))), 'more', 'free')
  assert not downloads.available(more, tmp_path)
  assert downloads.get(more, tmp_path) == found
  assert [path for path, _ in server.requests][2:] == ['/more.zip']


def test_the_raw_files_may_be_in_a_directory_of_the_archive(server, tmp_path):
  server.files = {'/x.zip': zipped({'Release/data/train.tif': b''})}
  source = Source('x', (Archive(Remote(f'{server.url}/x.zip')),), 'train.tif', 'free')
  assert downloads.get(source, tmp_path) == tmp_path / 'x' / 'Release' / 'data'


def test_archives_of_something_else_are_refused(server, tmp_path):
  server.files = {
    '/x.zip': zipped({'a': b''}),
    '/page.zip': b'<html>',
    '/y.zip': zipped({'a': b''}),
  }
  archives = {
    name: (Archive(Remote(f'{server.url}/{name}.zip'), inner=inner),)
    for name, inner in (('x', ()), ('page', ()), ('y', ('b.zip',)))
  }
  for name, message in (
    ('x', 'x does not hold train.tif: delete it, to download it again'),
    ('page', r'page\.zip is not a zip or tar archive: delete it'),
    ('y', r'y\.zip does not hold b\.zip: delete it'),
  ):
    with pytest.raises(SegjaxError, match=message):
      downloads.get(Source(name, archives[name], 'train.tif', 'free'), tmp_path)


# --- from an address to prepared data -------------------------------------------------------------


@pytest.fixture
def local(server, monkeypatch):
  """Moves the addresses of a data set to the local server."""

  def local(key, files):
    monkeypatch.setitem(downloads.SOURCES, key, moved(server, downloads.SOURCES[key]))
    server.files |= files

  return local


def test_isbi2012(local, server, tmp_path):
  pages = [Image.fromarray(np.full((8, 8), 255 * (i % 2), np.uint8)) for i in range(30)]
  volume = io.BytesIO()
  pages[0].save(volume, 'TIFF', save_all=True, append_images=pages[1:])
  names = ('train-volume.tif', 'train-labels.tif')
  archive = zipped({f'ISBI-2012-challenge/{name}': volume.getvalue() for name in names})
  local('isbi2012', {'/ISBI-2012-challenge.zip': archive})

  message = r'isbi2012/fold1 is not in .*: run `segjax data prepare isbi2012/fold1`, .*unknown size'
  with pytest.raises(SegjaxError, match=message):
    datasets.load('isbi2012/fold1', tmp_path)
  with pytest.raises(SegjaxError, match=r'challenge\.zip is missing .* elsewhere and put it there'):
    datasets.load('isbi2012/fold1', tmp_path, download=True, offline=True)
  assert server.requests == []
  builder = datasets.load('isbi2012/fold1', tmp_path, download=True)
  assert builder.info.splits['val'].num_examples == 6
  # Another config is prepared from the same raw files, without being asked for.
  assert datasets.load('isbi2012', tmp_path).info.splits['val'].num_examples == 5
  assert len(server.requests) == 1


def test_voc(local, tmp_path):
  jpg, png = encode(np.zeros((6, 5, 3), np.uint8), 'JPEG'), encode(np.zeros((6, 5), np.uint8))
  members = {}
  for split in ('train', 'val'):
    members[f'ImageSets/Segmentation/{split}.txt'] = f'{split}\n'.encode()
    members |= {f'JPEGImages/{split}.jpg': jpg, f'SegmentationClass/{split}.png': png}
  for year, above in ((2011, 'TrainVal/VOCdevkit/VOC2011'), (2012, 'VOCdevkit/VOC2012')):
    key = f'voc/{year}'
    name = downloads.SOURCES[key].archives[0].remote.name
    local(key, {f'/{name}': tarred({f'{above}/{p}': c for p, c in members.items()})})
    builder = datasets.load(key, tmp_path, download=True)
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {'train': 1, 'val': 1}


def test_pets_without_tensorflow(local, tmp_path):
  rng = np.random.default_rng(0)
  trimap = rng.integers(1, 4, (6, 5), np.uint8)
  image = rng.integers(0, 256, (6, 5, 3), np.uint8)
  # As some of upstream's: a PNG with transparency that is named .jpg.
  transparent = encode(np.concatenate([image, image[..., :1]], 2))
  jpg = encode(image, 'JPEG')
  xml = (
    '<annotation><size><width>5</width><height>6</height></size><object><bndbox><xmin>1</xmin>'
    '<ymin>3</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>'
  )
  labels = {
    'annotations/trainval.txt': 'Bengal_1 6 1 2\npug_2 26 2 15\n',
    'annotations/test.txt': 'pug_3 26 2 15\n',
    'annotations/xmls/pug_2.xml': xml,
    **{f'annotations/trimaps/{n}.png': encode(trimap) for n in ('Bengal_1', 'pug_2', 'pug_3')},
  }
  labels = {k: v.encode() if isinstance(v, str) else v for k, v in labels.items()}
  pictures = {'images/Bengal_1.jpg': transparent, 'images/pug_2.jpg': jpg, 'images/pug_3.jpg': jpg}
  files = {'/images.tar.gz': tarred(pictures), '/annotations.tar.gz': tarred(labels)}
  local('oxford_iiit_pet', files)

  builder = datasets.load('oxford_iiit_pet', tmp_path, download=True)
  assert str(builder.version) == '4.0.0'
  examples = {e['file_name'].decode(): e for e in builder.as_data_source('train')}
  assert sorted(examples) == ['Bengal_1.jpg', 'pug_2.jpg']
  pug = examples['pug_2.jpg']
  np.testing.assert_array_equal(pug['segmentation_mask'][..., 0], trimap)
  assert builder.info.features['label'].int2str(pug['label']) == 'pug'
  assert builder.info.features['species'].int2str(pug['species']) == 'Dog'
  np.testing.assert_allclose(pug['head_bbox'], [0.5, 0.2, 1, 1], rtol=1e-6)
  cat = examples['Bengal_1.jpg']
  assert cat['image'].shape == (6, 5, 3) and not cat['head_bbox'].any()
  assert builder.info.splits['test'].num_examples == 1


@pytest.mark.parametrize('name', ['cityscapes_instances', 'cityscapes_panoptic'])
def test_what_only_its_owner_hands_out(tmp_path, name):
  assert isinstance(downloads.find(name), Manual)
  message = f'{name} cannot be downloaded .free for .*: register at https://www.cityscapes-data'
  with pytest.raises(SegjaxError, match=message):
    datasets.load(name, tmp_path, download=True)


def test_digests_are_checked_on_the_way(server, tmp_path):
  content = zipped({'annotations/a': b''})
  server.files = {'/x.zip': content}
  digest = hashlib.sha256(content).hexdigest()
  good, bad = (
    Source(d, (Archive(Remote(f'{server.url}/x.zip', f'sha256:{x}')),), 'annotations', 'free')
    for d, x in (('good', digest), ('bad', digest[::-1]))
  )
  assert downloads.get(good, tmp_path) == tmp_path / 'good'
  with pytest.raises(SegjaxError, match=r'x\.zip has the SHA-256'):
    downloads.get(bad, tmp_path)
  assert not (tmp_path / 'bad' / 'x.zip').exists()

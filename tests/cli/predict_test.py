"""`segjax predict`: the files of each task, and their names."""

import contextlib
import io
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import fails, run
from PIL import Image
from pycocotools import mask as mask_lib
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax import infer
from segjax.cli import predict, predict_files
from segjax.data.formats import coco, panoptic
from segjax.data.frames import Frame, Source, find_source
from segjax.report import overlays
from segjax.types import SegjaxError

CLASSES = {'ball', 'box', 'tree', 'ring', 'star'}


def write_images(folder, sizes):
  """Noise, u8[H, W, 3] or u8[H, W], by file name."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  for name, size in sizes.items():
    cv2.imwrite(str(folder / name), rng.integers(0, 256, size, np.uint8))
  return folder


def predict_command(workdir, images, output, *args):
  return ['predict', f'--workdir={workdir}', f'--images={images}', f'--output={output}', *args]


def test_label_maps_of_any_size_and_format(semantic_run, tmp_path):
  sizes = {'a.png': (40, 70, 3), 'b.jpg': (32, 32, 3), 'c.tif': (9, 33, 3), 'gray.png': (20, 30)}
  images, output = write_images(tmp_path / 'images', sizes), tmp_path / 'out'
  (images / 'notes.txt').write_text('not an image')
  assert run(*predict_command(semantic_run, images, output)) == 0
  names = {f'{Path(name).stem}{end}.png' for name in sizes for end in ('', '_overlay')}
  assert {p.name for p in output.iterdir()} == names
  label = np.asarray(Image.open(output / 'a.png'))
  assert label.shape == (40, 70)
  assert label.dtype == np.uint8 and label.max() < 9
  overlay = np.asarray(Image.open(output / 'a_overlay.png'))
  assert len(overlay) == 7 * 40, 'enlarged, so that the legend can be read'
  assert overlay.shape[1] > 7 * 70


def test_uncertainty_of_a_network_that_samples(tmp_path, root):
  """Bayesian SegNet: the shipped config, shrunk."""
  keys = {
    'model.width': 2,
    'model.classes': 9,
    'train.steps': 2,
    'train.images': 1,
    'data.name': 'scenes/tiny',
    'data.size.image_size': '(32,32)',
    'batch.size': 4,
    'eval.samples': 2,
  }
  workdir = tmp_path / 'run'
  path = root / 'configs/segnet/bayesian_camvid.py'
  args = [f'--config.{key}={value}' for key, value in keys.items()]
  assert run('train', f'--config={path}', f'--workdir={workdir}', *args) == 0
  assert 'uncertainty' in (workdir / 'report.html').read_text()
  images = write_images(tmp_path / 'images', {'a.png': (20, 30, 3)})
  assert run(*predict_command(workdir, images, tmp_path / 'out')) == 0
  assert cv2.imread(str(tmp_path / 'out/a_uncertainty.png')).shape == (20, 30, 3)


def test_objects_in_the_format_of_coco(instance_run, tmp_path):
  sizes = {'000000000007': (50, 70), '000000000030': (90, 40)}
  images = write_images(tmp_path / 'images', {f'{n}.jpg': (*s, 3) for n, s in sizes.items()})
  output = tmp_path / 'out'
  assert run(*predict_command(instance_run, images, output)) == 0
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(str(output / 'images.json'))
    boxes = truth.loadRes(str(output / 'results_bbox.json'))
    found = truth.loadRes(str(output / 'results_segm.json'))
    evaluation = COCOeval(truth, found, 'segm')
    evaluation.evaluate()
  assert sorted(truth.imgs) == [7, 30]
  assert len(found.anns) == len(boxes.anns) > 0
  for annotation in found.anns.values():
    image = truth.imgs[annotation['image_id']]
    mask = coco.decode_mask(annotation['segmentation']['counts'], (image['height'], image['width']))
    assert mask.sum() == mask_lib.area(annotation['segmentation'])
  for name, size in sizes.items():
    entry = json.loads((output / f'{name}.json').read_text())
    assert (entry['file_name'], entry['height'], entry['width']) == (f'{name}.jpg', *size)
    ours = [a for a in found.anns.values() if a['image_id'] == entry['id']]
    assert len(entry['objects']) == len(ours)
    assert {o['class'] for o in entry['objects']} <= CLASSES
    assert {'bbox', 'segmentation', 'score'} <= entry['objects'][0].keys()
    check_overlay(output / f'{name}_overlay.png', size)


def test_the_ids_are_those_of_ones_own_annotations(instance_run, tmp_path, capsys):
  images = tmp_path / 'in'
  for folder in ('a', 'b'):
    write_images(images / folder, {'x.png': (20, 30, 3)})
  listed = [{'id': 41, 'file_name': 'b/x.png'}, {'id': 7, 'file_name': 'a/x.png'}]
  path = tmp_path / 'mine.json'
  path.write_text(json.dumps({'images': listed}))
  args = *predict_command(instance_run, images, tmp_path / 'out'), f'--annotations={path}'
  assert run(*args) == 0
  found = json.loads((tmp_path / 'out/images.json').read_text())['images']
  assert {image['file_name']: image['id'] for image in found} == {'a/x.png': 7, 'b/x.png': 41}
  ids = {
    entry['image_id'] for entry in json.loads((tmp_path / 'out/results_bbox.json').read_text())
  }
  assert ids <= {7, 41}
  path.write_text(json.dumps({'images': listed[:1]}))
  path.write_text(json.dumps({'images': [listed[0], {'id': 3, 'file_name': 'x.png'}, listed[1]]}))
  assert 'x.png is 2 times among the images' in fails(capsys, *args, '--overwrite')
  for content in ('[]', '{"images": [{"id": 1, "file_name": ""}]}', '{"images": [3]}'):
    path.write_text(content)
    assert 'is not a JSON file with images' in fails(capsys, *args, '--overwrite')
  message = fails(capsys, *args, '--overwrite', '--save=overlay')
  assert '--annotations is for the files for all images' in message


def test_images_that_have_moved_have_the_ids_of_their_names(tmp_path):
  path = tmp_path / 'mine.json'
  names = ['C:\\\\images\\\\a.png', '/elsewhere/b.png', 'ä.png']
  images = [{'id': i, 'file_name': name.replace('\\\\', '\\')} for i, name in enumerate(names, 5)]
  path.write_text(json.dumps({'images': images}, ensure_ascii=False), encoding='utf-8')
  paths = [Path(name) for name in ('a.png', 'here/b.png', 'ä.png')]
  assert list(predict_files.listed_ids(path, paths).values()) == [5, 6, 7]
  with pytest.raises(SegjaxError, match=r'c\.png is not among the images of --annotations'):
    predict_files.listed_ids(path, [Path('c.png')])


def test_segments_in_the_panoptic_format(panoptic_run, tmp_path):
  sizes = {'000000000007': (50, 62), '000000000030': (64, 40)}
  images = write_images(tmp_path / 'images', {f'{n}.jpg': (*s, 3) for n, s in sizes.items()})
  output = tmp_path / 'out'
  assert run(*predict_command(panoptic_run, images, output)) == 0
  results = json.loads((output / 'results.json').read_text())['annotations']
  listed = json.loads((output / 'images.json').read_text())
  assert [image['id'] for image in listed['images']] == [7, 30]
  assert [category['isthing'] for category in listed['categories']] == [0] * 4 + [1] * 5
  known = {category['id'] for category in listed['categories']}
  for (name, size), entry in zip(sizes.items(), results, strict=True):
    assert entry['image_id'] == int(name)
    rgb = np.asarray(Image.open(output / 'results' / entry['file_name']))
    segments = entry['segments_info']
    assert segments
    # Raises where a pixel's id is not in the list, or one of the list has no pixel.
    panoptic.segment_map(panoptic.rgb_to_ids(rgb), [s['id'] for s in segments], name, size)
    assert {s['category_id'] for s in segments} <= known
    check_overlay(output / f'{name}_overlay.png', size)


def check_overlay(path, size):
  overlay = np.asarray(Image.open(path))
  assert overlay.shape[0] * size[1] == overlay.shape[1] * size[0], 'enlarged by an integer factor'


def test_never_overwrites_or_mixes_up(semantic_run, tmp_path, capsys):
  write_images(tmp_path, {'a.png': (8, 8, 3), 'a.jpg': (8, 8, 3)})
  sub = write_images(tmp_path / 'sub', {'a.png': (8, 8, 3)})
  before = (sub / 'a.png').read_bytes()
  over = predict_command(semantic_run, sub, sub, '--overwrite')
  assert 'conflicts with' in fails(capsys, *over)
  assert (sub / 'a.png').read_bytes() == before
  args = predict_command(semantic_run, tmp_path / 'a.*', tmp_path / 'out')
  assert 'conflicts with' in fails(capsys, *args)


def test_no_images_or_one_that_cannot_be_decoded(semantic_run, tmp_path, capsys):
  args = predict_command(semantic_run, tmp_path, tmp_path / 'out')
  assert 'no images match' in fails(capsys, *args)
  (tmp_path / 'broken.png').write_bytes(b'not a png')
  sentence = fails(capsys, *args)
  assert sentence.startswith(f'segjax: {tmp_path / "broken.png"} cannot be decoded: replace it')
  assert not (tmp_path / 'out').exists()


def break_some(folder):
  """Of five photos the second is cut short, one is no file, and a Mac left its file beside one."""
  write_images(folder, {f'p{i}.jpg': (64, 96, 3) for i in range(4)})
  whole = (folder / 'p1.jpg').read_bytes()
  (folder / 'p1.jpg').write_bytes(whole[: len(whole) // 2])
  (folder / 'p4.jpg').symlink_to(folder / 'nowhere.jpg')
  (folder / '._p0.jpg').write_bytes(b'\x00\x05\x16\x07' * 20)
  (folder / 'directory.jpg').mkdir()
  return folder


@pytest.mark.parametrize('pattern', ['', '*.jpg'])
def test_a_broken_file_does_not_end_it(semantic_run, tmp_path, capsys, pattern):
  images, output = break_some(tmp_path / 'in'), tmp_path / 'out'
  capsys.readouterr()
  assert run(*predict_command(semantic_run, images / pattern, output)) == 2
  names = {f'p{i}{end}.png' for i in (0, 2, 3) for end in ('', '_overlay')}
  assert {p.name for p in output.iterdir()} == names
  *_, count, first, second, last = capsys.readouterr().err.splitlines()
  assert count.startswith('3 images, ')
  cut = f'{images / "p1.jpg"} cannot be decoded (it is truncated): replace it or leave it out'
  assert first == f'left out: {cut}'
  assert second.startswith(f'left out: {images / "p4.jpg"} cannot be read (No such file')
  assert last == f'segjax: 2 of 5 files were left out, such as {cut}'


def read_results(output, task):
  if task == 'instance':
    return json.loads((output / 'results_segm.json').read_text())
  return json.loads((output / 'results.json').read_text())['annotations']


@pytest.mark.parametrize('task', ['instance', 'panoptic'])
def test_results_have_the_files_that_are_not_broken(task, request, tmp_path, capsys):
  workdir = request.getfixturevalue(f'{task}_run')
  images, output = break_some(tmp_path / 'in'), tmp_path / 'out'
  assert '2 of 5 files were left out' in fails(capsys, *predict_command(workdir, images, output))
  listed = json.loads((output / 'images.json').read_text())['images']
  assert [image['file_name'] for image in listed] == ['p0.jpg', 'p2.jpg', 'p3.jpg']
  found = read_results(output, task)
  assert {entry['image_id'] for entry in found} <= {image['id'] for image in listed}
  assert found
  none = predict_command(workdir, images / 'p[14].jpg', tmp_path / 'none')
  assert '2 of 2 files were left out' in fails(capsys, *none)
  assert not (tmp_path / 'none').exists()


def test_a_file_whose_name_has_the_characters_of_patterns(semantic_run, tmp_path):
  images = write_images(tmp_path / 'in', {'a[1].png': (20, 30, 3), 'a1.png': (20, 30, 3)})
  output = tmp_path / 'out'
  assert run(*predict_command(semantic_run, images / 'a[1].png', output)) == 0
  assert {p.name for p in output.iterdir()} == {'a[1].png', 'a[1]_overlay.png'}


def test_photos_are_predicted_upright(semantic_run, tmp_path):
  """A photo that is stored on its side gives what the same photo, stored upright, gives."""
  images, output = tmp_path / 'in', tmp_path / 'out'
  images.mkdir()
  upright = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(upright).save(images / 'upright.png')
  Image.fromarray(np.rot90(upright)).save(images / 'turned.png', exif=exif)
  assert run(*predict_command(semantic_run, images, output)) == 0
  for end in ('', '_overlay'):
    found = [np.asarray(Image.open(output / f'{n}{end}.png')) for n in ('upright', 'turned')]
    np.testing.assert_array_equal(*found)


# --- what is saved --------------------------------------------------------------------------------


def test_all_that_a_label_map_can_be_saved_as(semantic_run, tmp_path):
  images, output = write_images(tmp_path / 'in', {'a.png': (20, 30, 3)}), tmp_path / 'out'
  save = '--save=label,overlay,json,npz,prob'
  assert run(*predict_command(semantic_run, images, output, save)) == 0
  names = {'a.png', 'a_overlay.png', 'a.json', 'a.npz', 'a_prob.npz'}
  assert {p.name for p in output.iterdir()} == names
  label = np.asarray(Image.open(output / 'a.png'))
  arrays = np.load(output / 'a.npz')
  np.testing.assert_array_equal(arrays['label'], label)
  found = json.loads((output / 'a.json').read_text())
  assert (found['file_name'], found['height'], found['width']) == ('a.png', 20, 30)
  names = arrays['class_names'].tolist()
  assert {names.index(entry['class']): entry['pixels'] for entry in found['classes']} == {
    int(k): int((label == k).sum()) for k in np.unique(label)
  }
  probability = np.load(output / 'a_prob.npz')['probability']
  assert (probability.shape, probability.dtype) == ((20, 30, 9), np.float16)
  np.testing.assert_allclose(probability.astype(float).sum(-1), 1, atol=0.01)


@pytest.mark.parametrize('task', ['instance', 'panoptic'])
def test_arrays_and_a_description_of_each_image(task, request, tmp_path):
  workdir, output = request.getfixturevalue(f'{task}_run'), tmp_path / 'out'
  images = write_images(tmp_path / 'in', {'a.png': (64, 64, 3)})
  assert run(*predict_command(workdir, images, output, '--save=json,npz')) == 0
  arrays, found = np.load(output / 'a.npz'), json.loads((output / 'a.json').read_text())
  if task == 'instance':
    assert arrays['masks'].shape == (len(found['objects']), 64, 64)
    assert [o['score'] for o in found['objects']] == pytest.approx(arrays['scores'])
    width = arrays['boxes'][:, 2] - arrays['boxes'][:, 0]
    assert [o['bbox'][2] for o in found['objects']] == pytest.approx(width)
  else:
    assert {s['id']: s['area'] for s in found['segments']} == {
      int(k): int((arrays['segments'] == k).sum()) for k in arrays['segment_ids']
    }
    assert [s['category'] for s in found['segments']] == arrays['segment_classes'].tolist()
  assert not list(output.glob('*overlay*'))


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('overlays', '--save=overlays is unknown: did you mean overlay?'),
    ('label', 'a network of the task instance does not predict it: choose from overlay, json, npz'),
  ],
)
def test_what_cannot_be_saved(word, message, instance_run, tmp_path, capsys):
  images = write_images(tmp_path / 'in', {'a.png': (64, 64, 3)})
  args = predict_command(instance_run, images, tmp_path / 'out', f'--save={word}')
  assert message in fails(capsys, *args)
  assert not (tmp_path / 'out').exists()


def test_a_directory_with_files_is_asked_for(semantic_run, tmp_path, capsys):
  images, output = write_images(tmp_path / 'in', {'a.png': (20, 30, 3)}), tmp_path / 'out'
  output.mkdir()
  args = predict_command(semantic_run, images, output, '--save=label')
  assert run(*args) == 0, 'an empty one needs no asking'
  (output / 'a.png').write_bytes(b'old')
  assert f'--output={output} is not empty: choose another' in fails(capsys, *args)
  assert (output / 'a.png').read_bytes() == b'old'
  assert run(*args, '--overwrite') == 0
  assert np.asarray(Image.open(output / 'a.png')).shape == (20, 30)
  assert 'is a file' in fails(capsys, *predict_command(semantic_run, images, output / 'a.png'))


def test_the_pace_is_shown_without_what_compiles(semantic_run, tmp_path, capsys):
  sizes = {f'{k}.png': (64, 64, 3) for k in range(5)}
  images, output = write_images(tmp_path / 'in', sizes), tmp_path / 'out'
  capsys.readouterr()
  assert run(*predict_command(semantic_run, images, output, '--batch_size=2')) == 0
  last = capsys.readouterr().err.splitlines()[-1]
  assert re.fullmatch(rf'5 images, [\d.e+]+ images/s: the predictions are in {output}', last)


# --- which images ---------------------------------------------------------------------------------


def test_folders_in_folders_are_kept(semantic_run, tmp_path):
  for folder in ('in', 'in/x', 'in/x/y'):
    write_images(tmp_path / folder, {'a.png': (20, 30, 3)})
  for pattern, output in (('in/**/*.png', 'out'), ('in', 'in/out')):
    args = predict_command(semantic_run, tmp_path / pattern, tmp_path / output, '--save=label')
    assert run(*args) == 0
    found = {p.relative_to(tmp_path / output).as_posix() for p in (tmp_path / output).rglob('*.*')}
    assert found == {'a.png', 'x/a.png', 'x/y/a.png'}
  # What was written inside the directory is not read again.
  again = predict_command(semantic_run, tmp_path / 'in', tmp_path / 'in/out', '--overwrite')
  assert run(*again) == 0
  assert not list((tmp_path / 'in/out').rglob('out'))


@pytest.mark.parametrize('task', ['instance', 'panoptic'])
def test_images_of_one_name_are_told_apart_by_their_folders(task, request, tmp_path):
  workdir, output = request.getfixturevalue(f'{task}_run'), tmp_path / 'out'
  for folder in ('in', 'in/x'):
    write_images(tmp_path / folder, {'7.png': (64, 64, 3)})
  assert run(*predict_command(workdir, tmp_path / 'in', output, '--save=json')) == 0
  listed = json.loads((output / 'images.json').read_text())['images']
  assert [image['file_name'] for image in listed] == ['7.png', 'x/7.png']
  assert len({image['id'] for image in listed}) == 2
  if task == 'panoptic':
    assert [entry['file_name'] for entry in read_results(output, task)] == ['7.png', 'x/7.png']
    assert (output / 'results/x/7.png').is_file()


def find(*patterns, output='out'):
  return predict.find_images([str(p) for p in patterns], Path(output))


def test_files_directories_patterns_and_lists(tmp_path):
  for folder in ('a', 'a/b', 'c'):
    write_images(tmp_path / folder, {'1.png': (4, 4, 3), '2.JPG': (4, 4, 3)})
  (tmp_path / 'list.txt').write_text(f'{tmp_path}/c/1.png\n\n{tmp_path}/a/1.png\n')
  found = find(tmp_path / 'a', tmp_path / 'c/*.JPG', tmp_path / 'list.txt')
  names = {path.relative_to(tmp_path).as_posix(): str(folder) for path, folder in found.items()}
  assert names == {
    'a/1.png': '.',
    'a/2.JPG': '.',
    'a/b/1.png': 'b',
    'a/b/2.JPG': 'b',
    'c/2.JPG': '.',
    'c/1.png': '.',
  }


def test_directories_behind_links_and_hidden_files(tmp_path):
  for folder in ('photos', 'photos/.ipynb_checkpoints', 'disk/more'):
    write_images(tmp_path / folder, {'1.png': (4, 4, 3), '._1.png': (4, 4, 3)})
  (tmp_path / 'photos' / 'linked').symlink_to(tmp_path / 'disk')
  (tmp_path / 'disk' / 'back').symlink_to(tmp_path / 'disk')
  found = find(tmp_path / 'photos')
  assert [p.relative_to(tmp_path).as_posix() for p in found] == [
    'photos/1.png',
    'photos/linked/more/1.png',
  ]


def test_an_output_that_is_a_link_is_not_read(tmp_path):
  write_images(tmp_path / 'photos', {'1.png': (4, 4, 3)})
  write_images(tmp_path / 'disk', {'1_overlay.png': (4, 4, 3)})
  (tmp_path / 'photos' / 'out').symlink_to(tmp_path / 'disk')
  found = find(tmp_path / 'photos', output=tmp_path / 'photos' / 'out')
  assert list(found) == [tmp_path / 'photos/1.png']


def test_names_as_people_write_them(tmp_path, monkeypatch):
  """With a home directory, and in a list that Notepad has saved."""
  monkeypatch.setenv('HOME', str(tmp_path))
  write_images(tmp_path / 'a', {'1.png': (4, 4, 3)})
  (tmp_path / 'list.txt').write_bytes(f'\ufeff{tmp_path}/a/1.png\r\n'.encode())
  expected = [tmp_path / 'a/1.png']
  for pattern in ('~/a', '~/a/*.png', '~/a/1.png', '~/list.txt'):
    assert list(find(pattern)) == expected, pattern


def test_a_name_that_is_not_utf_8(tmp_path):
  (tmp_path / os.fsdecode(b'M\xfcller.png')).write_bytes(b'')
  with pytest.raises(SegjaxError, match=r'M.xfcller.png.* is not UTF-8: rename the file'):
    find(tmp_path)


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('https://a.org/b.jpg', 'https://a.org/b.jpg is a URL: download the file'),
    ('{tmp}/*.png', 'no images match'),
    ('{tmp}/urls.txt', 's3://x/y.png is a URL'),
    ('{tmp}/notes.txt', 'lists hello, which is no image by its suffix: remove the line'),
    ('{tmp}/binary.txt', 'binary.txt is not a text file with a path on each line'),
    ('{tmp}/empty.txt', 'no images match'),
  ],
)
def test_what_names_no_images(pattern, message, tmp_path):
  for name, content in {'urls': b's3://x/y.png', 'notes': b'hello', 'empty': b'\n'}.items():
    (tmp_path / f'{name}.txt').write_bytes(content)
  (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(SegjaxError, match=message):
    find(pattern.format(tmp=tmp_path))


# --- files with several images --------------------------------------------------------------------


def write_pages(path, sizes):
  rng = np.random.default_rng(0)
  first, *others = [Image.fromarray(rng.integers(0, 256, (*s, 3), np.uint8)) for s in sizes]
  first.save(path, save_all=True, append_images=others)


def write_clip(path, count, size=(40, 60)):
  """The same noise in each frame."""
  code = cv2.VideoWriter.fourcc(*'MJPG')
  writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 12.5, size[::-1])
  frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  for _ in range(count):
    writer.write(cv2.blur(frame, (9, 9)))
  writer.release()


def test_the_pages_of_a_tiff_are_images(semantic_run, tmp_path):
  images, output, sizes = tmp_path / 'in', tmp_path / 'out', [(20, 30), (24, 16)]
  images.mkdir()
  write_pages(images / 'stack.tif', sizes)
  assert run(*predict_command(semantic_run, images, output)) == 0
  names = {f'stack_page{k}{end}.png' for k in (1, 2) for end in ('', '_overlay')}
  assert {p.relative_to(output).as_posix() for p in output.rglob('*.png')} == {
    f'stack/{name}' for name in names
  }
  for k, size in enumerate(sizes, 1):
    assert np.asarray(Image.open(output / f'stack/stack_page{k}.png')).shape == size


def test_a_video_is_predicted_frame_by_frame(semantic_run, tmp_path, capsys):
  images, output = write_images(tmp_path / 'in', {'clip.png': (20, 30, 3)}), tmp_path / 'out'
  write_clip(images / 'clip.avi', 6)
  assert run(*predict_command(semantic_run, images, output)) == 0
  assert f'{images / "clip.avi"} -> {output / "clip_overlay.mp4"}, 6 frames' in (
    capsys.readouterr().err
  )
  assert {p.name for p in output.iterdir()} == {
    'clip',
    'clip.png',
    'clip_overlay.png',
    'clip_overlay.mp4',
  }
  labels = sorted((output / 'clip').iterdir())
  assert [p.name for p in labels] == [f'clip_frame{k:06}.png' for k in range(1, 7)]
  assert np.asarray(Image.open(labels[0])).shape == (40, 60)
  video = cv2.VideoCapture(str(output / 'clip_overlay.mp4'))
  assert (video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)) == (12.5, 6)
  height, width, _ = video.read()[1].shape
  assert (height, width > 9 * 60) == (9 * 40, True), 'enlarged, with a legend'


@pytest.mark.parametrize('task', ['instance', 'panoptic'])
def test_the_results_of_a_video_have_each_frame(task, request, tmp_path):
  workdir, output = request.getfixturevalue(f'{task}_run'), tmp_path / 'out'
  write_clip(tmp_path / '7.avi', 3)
  assert run(*predict_command(workdir, tmp_path / '7.avi', output)) == 0
  names = [f'7_frame{k:06}' for k in range(1, 4)]
  listed = json.loads((output / 'images.json').read_text())['images']
  assert [image['file_name'] for image in listed] == [f'{name}.avi' for name in names]
  assert [image['id'] for image in listed] == [1, 2, 3]
  assert {entry['image_id'] for entry in read_results(output, task)} == {1, 2, 3}
  assert [p.stem for p in sorted((output / '7').iterdir())] == names
  if task == 'panoptic':
    assert [p.stem for p in sorted((output / 'results').iterdir())] == names
  assert (output / '7_overlay.mp4').stat().st_size > 0


def test_a_large_image_is_written_by_strips_as_others_are(semantic_run, tmp_path, monkeypatch):
  """At a size at which the legend needs no enlarged image."""
  images = write_images(tmp_path / 'in', {'a.png': (300, 400, 3)})
  own_size = ['--config.data.size.image_size=none', '--save=label,overlay,json,prob']
  monkeypatch.setattr(infer, '_WHOLE_PIXELS', 0)
  assert run(*predict_command(semantic_run, images, tmp_path / 'whole', *own_size)) == 0
  monkeypatch.setattr(predict_files, '_LARGE', 0)
  monkeypatch.setattr(predict_files, '_STRIP', 128)
  monkeypatch.setattr(overlays, '_STRIP', 100)
  assert run(*predict_command(semantic_run, images, tmp_path / 'large', *own_size)) == 0
  whole, large = tmp_path / 'whole', tmp_path / 'large'
  assert {p.name for p in large.iterdir()} == {p.name for p in whole.iterdir()}
  read = lambda directory, name: np.asarray(Image.open(directory / name))
  np.testing.assert_array_equal(read(large, 'a.png'), read(whole, 'a.png'))
  np.testing.assert_array_equal(read(large, 'a_overlay.png'), read(whole, 'a_overlay.png'))
  assert (large / 'a.json').read_text() == (whole / 'a.json').read_text()
  found, expected = (np.load(d / 'a_prob.npz')['probability'] for d in (large, whole))
  assert found.dtype == np.float16 and found.shape == (300, 400, 9)
  np.testing.assert_array_equal(found, expected)
  best = np.take_along_axis(found, read(large, 'a.png')[..., None].astype(np.int64), 2)[..., 0]
  np.testing.assert_allclose(best, found.max(2), atol=1e-3)


def test_an_image_over_the_limit_is_read_when_it_is_raised(semantic_run, tmp_path, capsys):
  images = write_images(tmp_path / 'in', {'a.png': (20, 30, 3)})
  args = predict_command(semantic_run, images, tmp_path / 'out')
  sentence = fails(capsys, *args, '--config.data.max_pixels=599')
  assert 'a.png is 30x20 = 600 pixels, more than config.data.max_pixels=599' in sentence
  assert run(*args, '--config.data.max_pixels=600') == 0


@pytest.mark.parametrize(
  ('names', 'numbers'),
  [
    (['000000000139.jpg', '000000000285.jpg'], [139, 285]),
    (['a.png', '7.png'], [1, 2]),
    (['7.png', '07.png'], [1, 2]),
    (['²3.png'], [1]),
  ],
)
def test_images_are_numbered_as_coco_does(names, numbers):
  paths = [Path(name) for name in names]
  assert list(predict_files.image_numbers(paths).values()) == numbers


@pytest.mark.parametrize(
  ('names', 'ids'),
  [
    (['000000000139.jpg', '000000000285.jpg'], [139, 285]),
    (['ulm_000000_000019_leftImg8bit.png', 'b.png'], ['ulm_000000_000019', 'b']),
    (['7.png', '07.png'], ['7', '07']),
    (['a.png', 'a_leftImg8bit.png'], ['a', 'a_leftImg8bit']),
  ],
)
def test_images_of_segments_have_the_ids_of_the_public_evaluations(names, ids):
  assert list(predict_files.panoptic_image_ids([Path(name) for name in names]).values()) == ids


def test_outputs_of_each_image(tmp_path):
  pixels = np.zeros((2, 2, 3), np.uint8)
  paths = [Path('in/a.jpg'), Path('in/sub/b.mp4')]
  place = predict_files.Place(tmp_path, {paths[0]: Path(), paths[1]: Path('sub')})
  alone = Frame(Source(paths[0], 'image'), 'a', pixels)
  assert place.relative(alone, '.json') == Path('a.json')
  frame = Frame(Source(paths[1], 'frame'), 'b_frame000001', pixels, 25.0)
  assert place.relative(frame, '.json') == Path('sub/b/b_frame000001.json')
  assert place.shared_name(frame, '.png') == 'sub/b_frame000001.png'


def check_outputs(paths, *args):
  sources = [find_source(Path(p)) for p in paths]
  place = predict_files.Place(Path('out'), {source.path: Path() for source in sources})
  predict_files.check_outputs(place, sources, *args)


@pytest.mark.parametrize(
  ('paths', 'message'),
  [
    (['in/a.jpg', 'in/a.png'], 'conflicts with in/a.jpg'),
    (['in/a_overlay.jpg', 'in/a.jpg', 'out/a_overlay.png'], 'conflicts with'),
    (['in/results.jpg'], 'results.json'),
    (['in/results.mp4'], 'results'),
    (['in/a.mp4', 'in/a.avi'], 'conflicts with in/a.mp4'),
    (['out/a/b.jpg', 'in/a.mp4'], 'conflicts with out/a/b.jpg'),
    (['out/a_overlay.mp4', 'in/a.mp4'], 'conflicts with out/a_overlay.mp4'),
    (['in/a_frame000001.jpg', 'in/a.mp4'], 'conflicts with in/a_frame000001.jpg'),
  ],
)
def test_no_file_is_written_twice(paths, message):
  with pytest.raises(SegjaxError, match=message):
    check_outputs(
      paths,
      ('.json', '_overlay.png'),
      ('results.json', 'results'),
    )


def test_an_image_and_a_video_of_one_name_do_not_conflict():
  """As a phone names them."""
  check_outputs(('in/IMG_1.JPG', 'in/IMG_1.MOV'), ('.json', '_overlay.png'))

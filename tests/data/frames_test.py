"""The images in files: pages of TIFFs and frames of videos, and videos that are written."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.data import frames
from segjax.types import SegjaxError

SIZE = (48, 64)


def write_video(path, count, codec='MJPG', rate=12.5):
  """Frames of one color each; the left half of frame k has the red value 10 k."""
  writer = cv2.VideoWriter(
    str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate, SIZE[::-1]
  )
  for k in range(count):
    bgr = np.zeros((*SIZE, 3), np.uint8)
    bgr[:, : SIZE[1] // 2, 2] = 10 * (k % 25)
    writer.write(bgr)
  writer.release()
  return path


def write_pages(path, *arrays):
  first, *others = map(Image.fromarray, arrays)
  first.save(path, save_all=True, append_images=others)
  return path


def read(path, channels=3):
  return list(frames.read_frames(frames.find_source(path), channels))


def test_an_image_is_itself(tmp_path):
  pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
  Image.fromarray(pixels).save(tmp_path / 'a.b.png')
  (found,) = read(tmp_path / 'a.b.png')
  assert (found.source.kind, found.name, found.file_name) == ('image', 'a.b', 'a.b.png')
  assert found.rate is None
  np.testing.assert_array_equal(found.pixels, pixels)


def test_pages_are_numbered_from_one(tmp_path):
  arrays = [np.full((4, 5 + k), 20 * k, np.uint8) for k in range(10)]
  found = read(write_pages(tmp_path / 'stack.TIFF', *arrays), channels=1)
  assert [f.name for f in found] == [f'stack_page{k:02}' for k in range(1, 11)]
  assert found[0].file_name == 'stack_page01.TIFF'
  for frame, array in zip(found, arrays, strict=True):
    np.testing.assert_array_equal(frame.pixels, array[..., None])
  assert {f.source.kind for f in found} == {'page'}


def test_a_tiff_of_one_page_is_an_image(tmp_path):
  (found,) = read(write_pages(tmp_path / 'a.tif', np.zeros((4, 5), np.uint8)))
  assert (found.source.kind, found.name) == ('image', 'a')


def test_frames_of_a_video(tmp_path):
  found = read(write_video(tmp_path / 'clip.avi', 20))
  assert [f.name for f in found] == [f'clip_frame{k:06}' for k in range(1, 21)]
  assert {f.rate for f in found} == {12.5}
  for k, frame in enumerate(found):
    assert frame.pixels.shape == (*SIZE, 3)
    left, right = frame.pixels[:, :24], frame.pixels[:, 40:]
    np.testing.assert_allclose(left.mean((0, 1)), [10 * k, 0, 0], atol=6)
    np.testing.assert_allclose(right.mean((0, 1)), 0, atol=6)
  gray = read(tmp_path / 'clip.avi', channels=1)
  assert gray[-1].pixels.shape == (*SIZE, 1)
  np.testing.assert_allclose(gray[-1].pixels[:, :24].mean(), 0.299 * 190, atol=4)


@pytest.mark.parametrize('content', [b'', b'no video' * 100])
def test_a_file_that_is_no_video(tmp_path, content, capfd):
  path = tmp_path / 'clip.mp4'
  path.write_bytes(content)
  with pytest.raises(SegjaxError, match=r'clip\.mp4 cannot be decoded as a video: replace it'):
    read(path)
  assert capfd.readouterr() == ('', '')  # no lines of OpenCV or FFmpeg


def test_a_missing_video(tmp_path):
  with pytest.raises(FileNotFoundError):
    read(tmp_path / 'clip.mp4')


def test_a_video_that_ends_early_has_its_frames(tmp_path, capfd):
  whole = write_video(tmp_path / 'whole.avi', 60).read_bytes()
  path = tmp_path / 'clip.avi'
  path.write_bytes(whole[: len(whole) // 2])
  found = []
  with pytest.raises(SegjaxError, match=r'clip\.avi ends after \d+ of 60 frames'):
    for frame in frames.read_frames(frames.find_source(path), 3):
      found.append(frame.name)
  assert 5 < len(found) < 60
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('size', [(48, 64), (41, 63)])
def test_a_video_is_written_with_every_pixel(tmp_path, size):
  path = tmp_path / 'out.mp4'
  rng = np.random.default_rng(0)
  shown = np.kron(rng.integers(0, 256, (3, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
  shown = shown[: size[0], : size[1]]
  with frames.VideoWriter(path, rate=10.0) as writer:
    for _ in range(8):
      writer.write(shown)
  found = read(path)
  assert len(found) == 8
  assert found[0].rate == 10.0
  assert found[-1].pixels.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
  difference = np.abs(found[-1].pixels[: size[0], : size[1]].astype(int) - shown)
  assert np.median(difference) < 8  # colors at half the resolution blur the edges


def test_a_video_that_cannot_be_written(tmp_path, capfd):
  with (
    pytest.raises(SegjaxError, match=r'out\.mp4 cannot be written: check'),
    frames.VideoWriter(tmp_path / 'missing' / 'out.mp4', 10.0) as writer,
  ):
    writer.write(np.zeros((*SIZE, 3), np.uint8))
  capfd.readouterr()


def test_a_video_is_whole_or_as_it_was(tmp_path):
  path = tmp_path / 'out.mp4'
  path.write_bytes(b'earlier')
  with pytest.raises(KeyboardInterrupt), frames.VideoWriter(path, 10.0) as writer:
    writer.write(np.zeros((*SIZE, 3), np.uint8))
    assert path.read_bytes() == b'earlier'
    raise KeyboardInterrupt
  assert [p.name for p in tmp_path.iterdir()] == ['out.mp4'] and path.read_bytes() == b'earlier'


def test_nothing_is_left_of_a_video_without_frames(tmp_path):
  with frames.VideoWriter(tmp_path / 'out.mp4', 10.0):
    pass
  assert not list(tmp_path.iterdir())


def test_a_broken_image_names_itself(tmp_path):
  buffer = io.BytesIO()
  Image.new('RGB', (64, 64)).save(buffer, 'JPEG')
  (tmp_path / 'a.jpg').write_bytes(buffer.getvalue()[:-50])
  with pytest.raises(SegjaxError, match=r'a\.jpg cannot be decoded'):
    read(tmp_path / 'a.jpg')

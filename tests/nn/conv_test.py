import pytest

from segjax.nn.conv import scaled


@pytest.mark.parametrize(
  ('channels', 'width', 'expected'),
  [
    (96, 1.0, 96),
    (256, 0.5, 128),
    (96, 0.25, 24),
    (96, 1 / 64, 2),
    (384, 1 / 64, 6),
    (16, 1e-9, 2),
  ],
)
def test_scaled_channels_are_even_and_never_none(channels, width, expected):
  assert scaled(channels, width) == expected

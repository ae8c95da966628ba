import re

import numpy as np
import pytest

from segjax.report import histograms

COLORS = {'train': 0, 'val': 1}


@pytest.mark.parametrize(
  'values',
  [[5], [0, 1], [3, 9, 4], list(range(100)), [128, 640, 480], [1, 100_000], [0.5], [2.5, 3.75]],
)
def test_bins_hold_all_values_and_are_equal(values):
  edges, logarithmic = histograms.bin_edges(values)
  counts, _ = np.histogram(values, edges)
  assert counts.sum() == len(values)
  np.testing.assert_allclose(np.diff(np.log(edges) if logarithmic else edges, n=2), 0, atol=1e-9)
  assert len(edges) <= 26


def test_few_integers_are_in_the_middle_of_their_bins():
  edges, logarithmic = histograms.bin_edges([3, 4, 4, 9])
  assert not logarithmic
  np.testing.assert_array_equal(edges, np.arange(3, 11) - 0.5)
  edges, _ = histograms.bin_edges([128, 128])
  np.testing.assert_array_equal(edges, np.arange(125, 133) - 0.5)


def test_many_decades_get_a_logarithmic_axis():
  assert histograms.bin_edges([1, 1000])[1]
  assert not histograms.bin_edges([0, 1000])[1]
  assert not histograms.bin_edges([10, 1000])[1]
  assert not histograms.bin_edges([0.1, 255])[1]


def bars(svg):
  """Heights of the bars that are not empty, by series."""
  found = {}
  for path, series in re.findall(r'<path d="([^"]+)"[^>]*style="fill: var\(--series-(\d)', svg):
    ys = [float(y) for y in re.findall(r'[ML] [\d.-]+ ([\d.-]+)', path)]
    if max(ys) > min(ys):
      found.setdefault(int(series), []).append(max(ys) - min(ys))
  return found


def test_each_split_adds_up_to_the_same_height():
  values = {'train': [1, 1, 2, 5], 'val': [2]}
  found = bars(histograms.histogram_svg('objects', values, COLORS))
  assert [len(found[k]) for k in (0, 1)] == [3, 1]
  np.testing.assert_allclose(sum(found[0]), sum(found[1]), rtol=1e-3)
  np.testing.assert_allclose(sorted(found[0])[-1], sum(found[0]) / 2, rtol=1e-3)


def test_a_split_without_values_has_no_bars():
  found = bars(histograms.histogram_svg('objects', {'train': [], 'val': [2, 3]}, COLORS))
  assert list(found) == [1]


def test_plots_take_the_colors_of_the_page_and_have_ids_of_their_own():
  svg = histograms.histogram_svg('width', {'train': [1, 2]}, COLORS)
  assert 'currentColor' in svg and '#123456' not in svg
  other = histograms.histogram_svg('height', {'train': [1, 2]}, COLORS)
  assert not set(re.findall(r'id="([^"]+)"', svg)) & set(re.findall(r'id="([^"]+)"', other))

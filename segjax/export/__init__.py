"""Trained runs as programs that take uint8 images, with pre- and postprocessing inside, and as
weights."""

from segjax.export.load import Exported, load_exported
from segjax.export.weights import export_weights
from segjax.export.write import FORMATS, WEIGHTS, export_run

__all__ = ['FORMATS', 'WEIGHTS', 'Exported', 'export_run', 'export_weights', 'load_exported']

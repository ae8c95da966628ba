"""Trained runs as programs that take uint8 images, with pre- and postprocessing inside."""

from segjax.export.load import Exported, load_exported
from segjax.export.write import FORMATS, export_run

__all__ = ['FORMATS', 'Exported', 'export_run', 'load_exported']

"""All rows, by kind and name."""

from speed import (
  dense,
  detection,
  evaluation,
  forms,
  memory,
  ops,
  panoptic,
  pipeline,
  predict,
  queries,
  startup,
)
from speed.row import Row

# Kind, as the table heads it -> name -> row.
KINDS: dict[str, dict[str, Row]] = {
  'Dense networks': dense.ROWS,
  'Detection': detection.ROWS,
  'Sets of masks': queries.ROWS,
  'Operations': ops.ROWS,
  'Input pipeline': pipeline.ROWS,
  'Evaluation': evaluation.ROWS | panoptic.ROWS,
  'Prediction': predict.ROWS,
  'Start-up': startup.ROWS,
  'Memory': memory.ROWS,
  'Other forms of our operations': forms.ROWS,
}
ROWS: dict[str, Row] = {name: row for rows in KINDS.values() for name, row in rows.items()}

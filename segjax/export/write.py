"""Writes a trained run as programs that need no segjax: see `segjax export`."""

import contextlib
import functools
import importlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.export

import segjax
from segjax.export import manifest, program
from segjax.export.program import Plan, Size
from segjax.ops import paste_masks
from segjax.run import Loaded
from segjax.types import SegjaxError, nearest

# The devices for which a StableHLO program is lowered.
PLATFORMS = ('cpu', 'cuda', 'tpu')
# The format that is no program, see `segjax.export.weights`.
WEIGHTS = 'safetensors'
# What operations raise for sizes that are no numbers, besides the errors of Python.
_NOT_SYMBOLIC = (jax.errors.InconclusiveDimensionOperation, jax.errors.ConcretizationTypeError)


def export_run(
  loaded: Loaded,
  output: Path,
  kind: str,
  *,
  sizes: Sequence[Size] = (),
  batch: int | None = None,
  probability: bool = False,
) -> list[Plan]:
  """Writes a directory with the programs of a run and their manifest.

  Args:
    loaded: the run.
    output: directory, which must not exist.
    kind: a name in `FORMATS`.
    sizes: (height, width) of the images; empty for any size.
    batch: number of images; None for any.
    probability: whether the probabilities of all classes are an output, in semantic tasks.

  Returns:
    The programs.

  Raises:
    SegjaxError: an unknown format, a library is not installed, `output` exists, or the network has
      an operation that the format lacks, or needs fixed sizes.
  """
  if kind not in FORMATS:
    raise SegjaxError(f'--format={kind} is unknown{nearest(kind, (*FORMATS, WEIGHTS))}')
  if probability and loaded.run.experiment.input.annotations[-1] != 'label':
    raise SegjaxError(
      f'--probability: a network of the task {loaded.run.experiment.task} has none for each pixel: '
      'leave it out'
    )
  write = FORMATS[kind]()
  plans = program.make_plans(loaded, sizes, batch)
  with complete_directory(output) as directory:
    names = [f'program{index}' for index in range(len(plans))]
    for name, plan in zip(names, plans, strict=True):
      function = program.make_function(loaded, plan, probability=probability)
      spec = program.input_spec(loaded, plan)
      outputs = _outputs(function, spec, plan)
      limits = program.size_limits(loaded, plan)
      files = _lower(functools.partial(write, function, spec, directory / name, limits), plan)
    content = manifest.describe(loaded, plans, outputs)
    for entry, name in zip(content['programs'], names, strict=True):
      entry['file'] = f'{name}{files}'
    if 'masks' in outputs:
      shutil.copyfile(paste_masks.__file__, directory / manifest.PASTE)
    versions = {'segjax': segjax.__version__, 'jax': jax.__version__}
    manifest.write(directory, {'format': kind, **versions, **content})
  return plans


@contextlib.contextmanager
def complete_directory(output: Path) -> Iterator[Path]:
  """A directory to write to, which becomes `output` at the end, or nothing after an error.

  Raises:
    SegjaxError: `output` exists.
  """
  if output.exists():
    raise SegjaxError(f'--output={output} exists: choose another directory, or remove it')
  output.parent.mkdir(parents=True, exist_ok=True)
  # In the same file system, where a directory can be renamed.
  with tempfile.TemporaryDirectory(prefix=f'.{output.name}.', dir=output.parent) as temporary:
    directory = Path(temporary) / 'export'
    directory.mkdir()
    yield directory
    directory.rename(output)


def _outputs(function: Callable[..., Any], spec: Any, plan: Plan) -> list[str]:
  return sorted(_lower(lambda: jax.eval_shape(function, spec), plan))


def _lower(action: Callable[[], Any], plan: Plan) -> Any:
  """What `action` returns; where it fails for sizes that are not fixed, a SegjaxError says so."""
  try:
    return action()
  except (*_NOT_SYMBOLIC, TypeError, ValueError, NotImplementedError) as e:
    if plan.native is not None and plan.batch is not None:
      raise
    wanted = ['--size=HEIGHTxWIDTH'] * (plan.native is None) + ['--batch=N'] * (plan.batch is None)
    raise SegjaxError(
      f'the network cannot be exported for {plan}, as one of its operations needs sizes that are '
      f'numbers: give {" and ".join(wanted)}'
    ) from e


def require(module: str, purpose: str) -> ModuleType:
  """A module of the extra `export`, or of TensorFlow.

  Raises:
    SegjaxError: it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as e:
    package = {'onnx': 'segjax[export]', 'flatbuffers': 'segjax[export]'}.get(module, module)
    raise SegjaxError(
      f"{purpose} needs {module}, which is not installed: run pip install '{package}'"
    ) from e


# --- formats --------------------------------------------------------------------------------------


def _stablehlo() -> Callable[..., str]:
  require('flatbuffers', '--format=stablehlo')

  def write(function: Any, spec: jax.ShapeDtypeStruct, path: Path, limits: list[str]) -> str:
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(spec)
    path.with_suffix('.stablehlo').write_bytes(exported.serialize())
    return '.stablehlo'

  return write


def _onnx() -> Callable[..., str]:
  require('onnx', '--format=onnx')
  from segjax.export.onnx import model

  def write(function: Any, spec: jax.ShapeDtypeStruct, path: Path, limits: list[str]) -> str:
    model.save(model.convert(function, spec), path.with_suffix('.onnx'))
    return '.onnx'

  return write


def _savedmodel() -> Callable[..., str]:
  tf = require('tensorflow', '--format=savedmodel')
  jax2tf = require('jax.experimental.jax2tf', '--format=savedmodel')

  def write(function: Any, spec: jax.ShapeDtypeStruct, path: Path, limits: list[str]) -> str:
    converted = jax2tf.convert(
      function,
      polymorphic_shapes=['({})'.format(', '.join(map(str, spec.shape)))],
      polymorphic_constraints=limits,
      with_gradient=False,
    )
    shape = [side if isinstance(side, int) else None for side in spec.shape]
    signature = tf.TensorSpec(shape, tf.uint8, name='image')
    module = tf.Module()
    module.f = tf.function(converted, autograph=False, input_signature=[signature])
    tf.saved_model.save(module, str(path), signatures={'serving_default': module.f})
    _try_savedmodel(tf, path, [batch or 1 for batch in shape[:1]] + [n or 32 for n in shape[1:]])
    return ''

  return write


def _try_savedmodel(tf: Any, path: Path, shape: Sequence[int]) -> None:
  """Runs a SavedModel once: TensorFlow may be older than the operations that JAX writes.

  Raises:
    SegjaxError: it does not run.
  """
  try:
    tf.saved_model.load(str(path)).f(tf.zeros(shape, tf.uint8))
  except tf.errors.OpError as e:
    raise SegjaxError(
      f'--format=savedmodel: TensorFlow {tf.__version__} cannot run operations that JAX '
      f'{jax.__version__} writes for this network: use --format=onnx or stablehlo'
    ) from e


# Name -> what checks for the libraries, and returns `write(function, spec, path, limits)`, which
# adds a suffix to the path and returns it.
FORMATS: dict[str, Callable[[], Callable[..., str]]] = {
  'onnx': _onnx,
  'savedmodel': _savedmodel,
  'stablehlo': _stablehlo,
}

"""The command line: its words, and what each command prints."""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags, logging
from rich.console import Console

import segjax
from segjax import config as config_lib
from segjax import predict
from segjax.convert import load as weights_lib
from segjax.data import datasets
from segjax.ops.paste_masks import paste_masks
from segjax.program.build import complete
from segjax.program.draw import draw_result, draw_segments
from segjax.program.evaluate import evaluate_run, tune_run, write_report
from segjax.program.load import load_run, open_checkpoints, tell
from segjax.program.tables import entry_facts, find_chains, record, run_chains, write_table_page
from segjax.program.train import train
from segjax.report import console
from segjax.tables import launch, page, results, runs
from segjax.tables import spec as spec_lib
from segjax.train import checkpoint, compile, log, loop
from segjax.types import SegjaxError
from segjax.workdir import Workdir


def train_command(args: argparse.Namespace) -> int:
  """`segjax train`."""
  train(Workdir(args.workdir), args.config, args.overrides)
  return 0


def _tune_command(args: argparse.Namespace) -> None:
  found = tune_run(Workdir(args.workdir), args.checkpoint, args.split, args.overrides)
  if jax.process_index() != 0:
    return
  if args.json:
    print(json.dumps(log.no_nan(found)))
    return
  measure, own, best = found['measure'], found['own'], found['best']
  chosen = {key: f'{value:g}' for key, value in best.items() if key != measure}
  print(
    f'{found["split"]} at step {found["step"]}, {len(found["tried"])} settings tried: best '
    f'{measure}={best[measure]:.4f}, with the own one {own[measure]:.4f}'
  )
  print('set it by ' + ' '.join(f'--config.eval.{key}={value}' for key, value in chosen.items()))


def evaluate_command(args: argparse.Namespace) -> int:
  """`segjax evaluate`."""
  if args.tune:
    _tune_command(args)
    return 0
  workdir = Workdir(args.workdir)
  run, split, now, parameters, metrics, pictures = evaluate_run(
    workdir, args.checkpoint, args.split, args.overrides
  )
  if jax.process_index() == 0:
    write_report(workdir, run, metrics, pictures, split, now, parameters)
    if args.json:
      print(json.dumps(log.no_nan({'step': now, 'split': split, **metrics})))
    else:
      Console().print(console.metrics_table(metrics))
      print(f'{split} at step {now}; report: {workdir.report}')
  return 0


def predict_command(args: argparse.Namespace) -> int:
  """`segjax predict`: files for each image, see `segjax.predict`."""
  paths, output = predict.find_images(args.images), Path(args.output)
  loaded = load_run(Workdir(args.workdir), args.checkpoint, args.overrides)
  run = loaded.run
  network = predict.Network(run.task, loaded.variables, run.spec, run.data)
  if run.data.instances is None:
    predict.write_labels(network, paths, output, tell)
    return 0
  if run.data.segments is not None:
    draw = functools.partial(draw_segments, run.spec)
    predict.write_segments(network, paths, output, tell, draw=draw)
    return 0
  evaluation = run.config['eval']
  paste = functools.partial(paste_masks, rule=evaluation['paste'])
  predict.write_objects(
    network,
    paths,
    output,
    tell,
    paste=paste if getattr(run.model, 'masks', True) else None,
    draw=functools.partial(draw_result, run.spec, evaluation['draw_threshold']),
  )
  return 0


def data_command(args: argparse.Namespace) -> int:
  """`segjax data prepare`."""
  builder = datasets.load(args.name, args.data_dir, args.source, report=tell)
  splits = ', '.join(f'{n} {s.num_examples}' for n, s in builder.info.splits.items())
  print(f'{args.name} {builder.version}: {splits} in {builder.data_path}')
  return 0


def convert(args: argparse.Namespace) -> int:
  """`segjax convert`."""
  count = weights_lib.convert_file(args.source, args.weights, args.output)
  wants = weights_lib.SOURCES[args.source].input
  print(f'{args.output}: {count} arrays; start from it with --config.init_from.path={args.output}')
  print(f'its network takes images as {wants}')
  return 0


def info(args: argparse.Namespace) -> int:
  """`segjax info`."""
  workdir = Workdir(args.workdir)
  config = complete(workdir.read_config())
  checkpoints = open_checkpoints(workdir, config)
  restored = checkpoints.restore(args.checkpoint)
  if restored is None:
    raise SegjaxError(f'{workdir.path} has no checkpoint yet: let training reach its first one')
  best = checkpoints.best()
  sizes = [a.size for n, a in restored.state.items() if n.startswith('params.')]
  facts = {
    'step': restored.step,
    'steps': config['train']['steps'],
    'parameter_count': sum(sizes),
    'parameters_sha256': restored.params_sha256,
    'config_digest': config_lib.digest(config),
    'best_metric': config['train']['best_metric'],
    'best_value': best[1] if best else None,
    'best_step': best[0] if best else None,
    'checkpoints': checkpoints.steps(),
  }
  if args.json:
    print(json.dumps(facts))
  else:
    for name, value in facts.items():
      print(f'{name:18} {value}')
  return 0


def table_command(args: argparse.Namespace) -> int:
  """`segjax table`."""
  table = spec_lib.read_table(spec_lib.find_table(args.name))
  runs.check_overrides(args.overrides)
  facts = results.parse_facts(args.fact)
  workdirs = Path(args.workdirs or Path('runs', table.name))
  for text in args.record:
    name, equals, path = text.partition('=')
    entries = runs.select(table, [name])
    if not equals or len(entries) != 1 or entries[0].script:
      raise SegjaxError(f'--record={text} is no ROW.RECIPE=WORKDIR of one trained entry')
    record(table, entries[0], Workdir(path), workdirs, args.overrides, facts)
  if args.wanted is not None:
    chains = find_chains(table, args.wanted, _seeds(args.seeds), workdirs)
    if args.launcher == 'submitit':
      arguments = [f'--fact={fact}' for fact in args.fact]
      arguments += [f'--config.{key}={value}' for key, value in args.overrides]
      launch.submit(table, chains, workdirs, arguments, args.launcher_option, tell)
    else:
      run_chains(table, chains, workdirs, args.overrides, facts)
  lines = page.make_lines(table, results.read_results(table), entry_facts)
  if args.html is not None:
    path = Path(args.html or workdirs / 'table.html')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table_page(path, table, lines, workdirs)
    tell(f'{path} is written')
  if args.json:
    print(json.dumps(page.to_json(table, lines)))
  else:
    print(page.render_markdown(table, lines), end='')
  return 0


def _seeds(text: str) -> list[int]:
  seeds = [s for s in map(config_lib.parse_value, text.split(',')) if isinstance(s, int)]
  if len(seeds) != text.count(',') + 1:
    raise SegjaxError(f'--seeds={text} is no list of whole numbers such as 0,1,2')
  return seeds


_EXAMPLES = {
  'train': """example:
  segjax train --config=configs/unet/scenes.py --workdir=runs/scenes --config.train.steps=100

Any key of the config can be set by --config.KEY=VALUE. The same command again goes on where the run
stopped; without --config the workdir's own config is taken.""",
  'evaluate': """example:
  segjax evaluate --workdir=runs/scenes --split=val --checkpoint=best --json
  segjax evaluate --workdir=runs/panoptic --split='train[:500]' --tune""",
  'predict': """example:
  segjax predict --workdir=runs/scenes --images='photos/*.jpg' --output=out/

Writes NAME.png (a pixel is its class index, drawn in the class's colour) and NAME_overlay.png. Of a
SegNet with dropout, --config.eval.samples=40 makes NAME_uncertainty.png too (Bayesian SegNet).
Of an instance task: NAME.json, NAME_overlay.png, results.json and images.json in COCO's format. Of
a panoptic one: NAME_overlay.png, results.json and results/, in COCO's panoptic format.""",
  'data': """example:
  segjax data prepare camvid --source=downloads/CamVid --data_dir=data/""",
  'convert': f"""example:
  segjax convert --source=torchvision/vgg16 --weights=vgg16.pth --output=vgg16.safetensors

Sources: {', '.join(weights_lib.SOURCES)}.
Weights are .safetensors, .pth, .pt, .pkl or .caffemodel files; no code that they hold is run.""",
  'info': """example:
  segjax info --workdir=runs/scenes --json""",
  'table': """examples:
  segjax table segnet_table1
  segjax table segnet_table1 --html
  segjax table segnet_table1 --run '*.cpu' --seeds=0,1,2 --config.data.source=CamVid/
  segjax table segnet_table1 --record segnet_basic_mfb.cpu=runs/basic --fact commit=1e077fc

A table is a folder with a table.toml, or its name under ./experiments. --config.KEY=VALUE goes to
every row; it may only say where things lie and how they run, such as data.source, data.dir,
init_from.path and mesh.""",
}


def make_parser() -> argparse.ArgumentParser:
  """The parser of `segjax`."""
  parser = argparse.ArgumentParser(
    prog='segjax',
    description='Image segmentation in JAX: from a config to a measured network.',
    epilog='example:\n  segjax train --config=configs/unet/scenes.py --workdir=runs/scenes\n'
    '  segjax evaluate --workdir=runs/scenes',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--version', action='version', version=segjax.__version__)
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

  def add(name: str, run: Callable[[argparse.Namespace], int], text: str):
    sub = commands.add_parser(
      name,
      help=text,
      description=text[0].upper() + text[1:] + '.',
      epilog=_EXAMPLES[name],
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    sub.set_defaults(run=run)
    sub.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return sub

  def add_workdir(sub: argparse.ArgumentParser) -> None:
    sub.add_argument('--workdir', required=True, help='folder of the run')

  def add_checkpoint(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
      '--checkpoint', type=_which, default='latest', help='latest (default), best, or a step'
    )

  sub = add('train', train_command, 'train a network from a config, or go on with a run')
  add_workdir(sub)
  sub.add_argument('--config', help='path of a config file')
  sub.add_argument(
    '--distributed',
    nargs='?',
    const='auto',
    metavar='HOST:PORT,COUNT,INDEX',
    help='several processes: found by JAX on TPU pods, SLURM and the like, or as given',
  )

  sub = add('evaluate', evaluate_command, 'compute the metrics of a trained network')
  add_workdir(sub)
  add_checkpoint(sub)
  sub.add_argument('--split', help='split of the data set; default: config.data.eval_split')
  sub.add_argument('--json', action='store_true', help='print one JSON object and nothing else')

  sub.add_argument(
    '--tune',
    action='store_true',
    help='find the best thresholds of a panoptic network on the split, and tell how to set them',
  )

  sub = add('predict', predict_command, 'segment images')
  add_workdir(sub)
  add_checkpoint(sub)
  sub.add_argument('--images', required=True, help='a folder, or a pattern in quotes')
  sub.add_argument('--output', required=True, help='folder to write to')

  sub = add('data', data_command, 'prepare a data set')
  sub.add_argument('action', choices=['prepare'])
  sub.add_argument('name', help='for example scenes, camvid, isbi2012/fold1')
  sub.add_argument('--data_dir', help='where prepared data goes')
  sub.add_argument('--source', help='where the raw files lie')

  sub = add('convert', convert, 'convert pretrained weights of another program')
  sub.add_argument('--source', required=True, help='for example torchvision/vgg16')
  sub.add_argument('--weights', required=True, help='file to read')
  sub.add_argument('--output', required=True, help='.safetensors file to write')

  sub = add('info', info, 'tell the step, the size and the digest of a run')
  add_workdir(sub)
  add_checkpoint(sub)
  sub.add_argument('--json', action='store_true', help='print one JSON object and nothing else')

  sub = add('table', table_command, "print a paper's table with our figures beside it, or fill it")
  sub.add_argument('name', help='for example segnet_table1')
  sub.add_argument(
    '--run',
    dest='wanted',
    nargs='*',
    metavar='ROW',
    help="train and record what is not run yet: of all rows, or of ROW, ROW.RECIPE, '*.cpu'",
  )
  sub.add_argument('--seeds', default='0', help='for --run: 0 (default) or more, 0,1,2')
  sub.add_argument('--workdirs', help='folder of the trainings; default: runs/NAME')
  sub.add_argument(
    '--launcher', choices=['local', 'submitit'], default='local', help='where --run trains'
  )
  sub.add_argument(
    '--launcher_option',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='of submitit, such as gpus_per_node=1 or slurm_partition=gpu; may be repeated',
  )
  sub.add_argument(
    '--record',
    action='append',
    default=[],
    metavar='ROW.RECIPE=WORKDIR',
    help='evaluate and enter a training that was done by hand; may be repeated',
  )
  sub.add_argument(
    '--fact',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help=f'what the workdir does not say: {", ".join(results.FACTS)}; may be repeated',
  )
  sub.add_argument(
    '--html', nargs='?', const='', help='write a page with pictures; default: WORKDIRS/table.html'
  )
  sub.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
  return parser


def _which(text: str) -> checkpoint.Which:
  return int(text) if text.isdigit() else text


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  """The parsed command line; `overrides` holds each `--config.KEY=VALUE` as `(KEY, VALUE)`."""
  parser = make_parser()
  plain, overrides, rest = [], [], iter(argv)
  for word in rest:
    if not word.startswith('--config.'):
      plain.append(word)
      continue
    key, equals, value = word.removeprefix('--config.').partition('=')
    overrides.append((key, value if equals else next(rest, '')))
  args = parser.parse_args(plain)
  if overrides and args.command in ('data', 'convert', 'info'):
    parser.error(f'segjax {args.command} takes no --config.{overrides[0][0]}')
  args.overrides = overrides
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit status; an error that the user can mend is one line."""
  args = parse_arguments(sys.argv[1:] if argv is None else argv)
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['segjax'])  # Grain's worker processes read absl's flags
  try:
    compile.enable_cache()
    if getattr(args, 'distributed', None):
      start_distributed(args.distributed)
    return args.run(args)
  except SegjaxError as e:
    if args.debug:
      raise
    print(f'segjax: {e}', file=sys.stderr)
    return 2
  except OSError as e:
    if args.debug:
      raise
    reason = f'{e.filename or "a file"}: {e.strerror or e}'
    print(f'segjax: {reason}: check the path, its permissions and the disk', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('segjax: interrupted', file=sys.stderr)
    return 130
  except loop.StoppedError as e:
    print(
      f'segjax: stopped by {e}; the state is saved: the same command goes on from there',
      file=sys.stderr,
    )
    return 128 + e.signum


def start_distributed(how: str) -> None:
  """Joins the other processes: 'auto', or 'host:port,number of processes,index of this one'."""
  if how == 'auto':
    jax.distributed.initialize()
    return
  try:
    address, count, index = how.split(',')
    count, index = int(count), int(index)
  except ValueError:
    raise SegjaxError(
      f'--distributed={how} is not HOST:PORT,COUNT,INDEX: write for example '
      '--distributed=10.0.0.1:1234,4,0'
    ) from None
  jax.distributed.initialize(address, count, index)


if __name__ == '__main__':
  sys.exit(main())

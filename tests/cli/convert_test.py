"""`segjax convert`; what it converts is tested with `segjax.convert`."""

import shutil
from pathlib import Path

from commands import fails, run, train_args

GOLDEN = Path(__file__).parent.parent / 'convert' / 'golden'


def test_mistakes_are_named(tmp_path, capsys):
  broken = tmp_path / 'vgg.safetensors'
  broken.write_bytes(b'truncated')
  output = f'--output={tmp_path / "out.safetensors"}'
  message = fails(capsys, 'convert', '--source=torchvision/vgg16', f'--weights={broken}', output)
  assert 'vgg.safetensors' in message
  assert not (tmp_path / 'out.safetensors').exists()
  message = fails(capsys, 'convert', '--source=torchvision/vgg61', f'--weights={broken}', output)
  assert 'did you mean torchvision/vgg16' in message


def test_the_directory_of_a_model_of_transformers_stands_for_its_weights(tmp_path, capsys):
  model = tmp_path / 'model'
  model.mkdir()
  (model / 'config.json').write_text('{"model_type": "vgg"}')
  file = shutil.copy(GOLDEN / 'vgg16.pth', model / 'pytorch_model.bin')
  source, output = 'torchvision/vgg16', tmp_path / 'out.safetensors'
  assert run('convert', f'--source={source}', f'--weights={model}', f'--output={output}') == 0
  assert output.is_file()
  # No run, whose head layers would be discarded. It is read, but not of this network.
  keys = {'path': model, 'source': source, 'reset': 'heads'}
  args = [f'--config.init_from.{key}={value}' for key, value in keys.items()]
  message = fails(capsys, *train_args(tmp_path / 'run', *args, steps=0))
  assert f'{file} has no array of this network' in message
  for command in (train_args(model), ['evaluate', f'--workdir={model}']):
    assert f'{model} is a model of transformers, not the workdir' in fails(capsys, *command)
  assert (model / 'config.json').read_text() == '{"model_type": "vgg"}'

"""`segjax convert`; what it converts is tested with `segjax.convert`."""

from commands import fails


def test_mistakes_are_named(tmp_path, capsys):
  broken = tmp_path / 'vgg.safetensors'
  broken.write_bytes(b'truncated')
  output = f'--output={tmp_path / "out.safetensors"}'
  message = fails(capsys, 'convert', '--source=torchvision/vgg16', f'--weights={broken}', output)
  assert 'vgg.safetensors' in message
  assert not (tmp_path / 'out.safetensors').exists()
  message = fails(capsys, 'convert', '--source=torchvision/vgg61', f'--weights={broken}', output)
  assert 'did you mean torchvision/vgg16' in message

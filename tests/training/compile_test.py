"""Compiler options change the speed, not the result; what is compiled is counted."""

import functools
import gc
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.training import compile as compile_lib


@pytest.fixture(autouse=True)
def fresh():
  compile_lib.compiler_options.cache_clear()
  yield
  compile_lib.compiler_options.cache_clear()


@pytest.mark.parametrize('once', [False, True])
def test_same_gradient_as_plain_jit(once):
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 9, 9, 3), (3, 3, 3, 4)))

  def loss(w):
    dims = ('NHWC', 'HWIO', 'NHWC')
    y = jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=dims)
    return (y**2).sum()

  fast = compile_lib.jit(jax.grad(loss), once=once)(w)
  np.testing.assert_allclose(fast, jax.jit(jax.grad(loss))(w), rtol=1e-5, atol=1e-4)


def test_barriers_in_small_loops_compile():
  """XLA makes functions of small loops, in which it cannot compile the barriers that we keep."""
  x = jnp.linspace(0.1, 0.4, 4)
  kept = lambda c, v: (c + jax.lax.optimization_barrier(v * x), None)
  np.testing.assert_allclose(
    compile_lib.jit(lambda x: jax.lax.scan(kept, x, x)[0])(x), x + x * x.sum(), rtol=1e-6
  )
  again = jax.checkpoint(lambda c, v: (jnp.sin(c * v), None))
  loss = lambda x: jax.lax.scan(again, x, x)[0].sum()
  fast = compile_lib.jit(jax.grad(loss))(x)
  np.testing.assert_allclose(fast, jax.grad(loss)(x), rtol=1e-5)


def test_an_option_that_this_jaxlib_does_not_have_is_left_out(monkeypatch):
  known = {'xla_backend_optimization_level': '1'}
  monkeypatch.setattr(compile_lib, '_CPU_OPTIONS', {'xla_no_such_option': 'true', **known})
  assert compile_lib.compiler_options() == known


def test_no_options_but_on_a_cpu(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert compile_lib.compiler_options() == {}


@pytest.fixture
def config():
  """What a test sets of JAX's config is reset."""
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  old = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in old.items():
    jax.config.update(name, value)


def test_cache_is_the_users_unless_named(config, monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', None)
  compile_lib.enable_cache()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'segjax' / 'jax')
  jax.config.update('jax_compilation_cache_dir', '/elsewhere')
  compile_lib.enable_cache()
  assert jax.config.jax_compilation_cache_dir == '/elsewhere'


def test_the_collector_is_off_while_a_function_is_traced():
  seen = []

  def double(x, factor):
    seen.append(gc.isenabled())
    return factor * x

  doubled = compile_lib.jit(functools.partial(double, factor=2))
  assert doubled(3) == 6
  assert seen == [False] and gc.isenabled()
  assert 'jit_double' in doubled.lower(3).as_text(), 'a program has the name of its function'


def test_the_collector_is_on_again_after_an_error():
  @compile_lib.jit
  def fail(x):
    raise ValueError(x)

  with pytest.raises(ValueError):
    fail(1)
  assert gc.isenabled()


def test_what_was_off_stays_off():
  gc.disable()
  try:
    assert compile_lib.jit(lambda x: x + 1)(1) == 2
    assert not gc.isenabled()
  finally:
    gc.enable()


@pytest.fixture
def stored(config, tmp_path):
  """Programs are stored in an empty directory."""
  from jax.experimental.compilation_cache import compilation_cache

  compilation_cache.reset_cache()
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  yield
  compilation_cache.reset_cache()


def test_compilations_and_programs_read_are_counted_and_announced(stored):
  x, lines = np.float32(1), []

  def announced():
    return compile_lib.announced(compile_lib.jit(lambda x: x * 3), 'the step', lines.append)

  compile_lib.compiler_options(once=False)  # compiles to try them
  start = compile_lib.compilations()
  first, second = announced(), announced()
  assert float(first(x)) == float(first(x)) == 3
  assert compile_lib.compilations() == (start.programs + 1, start.cached)
  assert float(second(x)) == float(second(x)) == 3
  assert compile_lib.compilations() == (start.programs + 2, start.cached + 1)
  assert [line.rpartition(' in ')[0] for line in lines] == [
    'the step: compiled',
    'the step: read from the cache',
  ]
  assert all(re.fullmatch(r'.* in (\d\.\d|\d+) s', line) for line in lines)


def test_the_cache_keeps_what_was_used_last(tmp_path):
  for age, name in enumerate(('new', 'middle', 'old')):
    path = tmp_path / f'jit_{name}-cache'
    path.write_bytes(bytes(10))
    os.utime(path, (1000 - age, 500))
  (tmp_path / 'of-another-program').write_bytes(bytes(100))
  compile_lib.prune(tmp_path, 30)
  assert len(list(tmp_path.iterdir())) == 4
  compile_lib.prune(tmp_path, 15)
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {'jit_new-cache', 'of-another-program'}
  compile_lib.prune(tmp_path / 'missing', 0)

"""Compiler options change the speed, not the result."""

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


def test_unknown_option_means_no_options(monkeypatch):
  monkeypatch.setattr(compile_lib, '_CPU_OPTIONS', {'xla_no_such_option': 'true'})
  assert compile_lib.compiler_options() == {}


def test_no_options_but_on_a_cpu(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert compile_lib.compiler_options() == {}


def test_cache_is_the_users_unless_named(monkeypatch, tmp_path):
  old = jax.config.jax_compilation_cache_dir
  try:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    jax.config.update('jax_compilation_cache_dir', None)
    compile_lib.enable_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'segjax' / 'jax')
    jax.config.update('jax_compilation_cache_dir', '/elsewhere')
    compile_lib.enable_cache()
    assert jax.config.jax_compilation_cache_dir == '/elsewhere'
  finally:
    jax.config.update('jax_compilation_cache_dir', old)

"""transformers' EoMT in torch, with the weights that ours are converted from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from segjax.convert import eomt as tables
from segjax.convert.table import convert
from segjax.models import eomt
from segjax.nn import vit
from speed import peers
from speed.row import Options, Program


def network(model: eomt.EoMT) -> nn.Module:
  """The network of the size of ours, with seeded random weights."""
  size = vit.SIZES[model.size]
  config = transformers.EomtConfig(
    hidden_size=size.width,
    num_hidden_layers=size.depth,
    num_attention_heads=size.heads,
    use_swiglu_ffn=size.swiglu,
    image_size=model.grid[0] * model.patch,
    patch_size=model.patch,
    num_blocks=model.blocks_with_queries,
    num_queries=model.queries,
    num_register_tokens=model.registers,
    id2label={i: str(i) for i in range(model.classes)},
    train_num_points=model.matching.points,
  )
  torch.manual_seed(0)
  return transformers.EomtForUniversalSegmentation(config)


def converted(model: eomt.EoMT, theirs: nn.Module) -> dict[str, Any]:
  """Our variables with the weights of `network`."""
  weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
  name = f'transformers/eomt_{model.size}'
  variables: dict[str, Any] = {}
  source = {name: tables.transformers_source(model.size)}
  for path, array in convert(weights, source, name, name).items():
    node = variables
    *parents, last = path.split('/')
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = array
  return variables


def _variants(model: eomt.EoMT, options: Options) -> Iterator[tuple[str, nn.Module]]:
  # A layout of the image does not matter to tokens.
  yield 'transformers', network(model).to(peers.device())
  if options.compiled:
    yield 'transformers, torch.compile', torch.compile(network(model).to(peers.device()))


def inference(model: eomt.EoMT, image: np.ndarray, options: Options) -> dict[str, Program]:
  """Classes and masks of the queries, [B, Q, …], for f[B, H, W, C]; no attention is masked."""

  def one(theirs: nn.Module, x: torch.Tensor) -> Program:
    theirs.attn_mask_probs.fill_(0.0)

    def run() -> list[torch.Tensor]:
      with torch.inference_mode(), peers.precision(options):
        found = theirs(pixel_values=x)
      peers.finish()
      return [found.class_queries_logits, found.masks_queries_logits]

    return run

  x = peers.image_tensor(image, torch.contiguous_format)
  return {name: one(theirs.eval(), x) for name, theirs in _variants(model, options)}


def training(
  model: eomt.EoMT,
  image: np.ndarray,
  objects: Sequence[Mapping[str, np.ndarray]],
  rate: float,
  options: Options,
) -> dict[str, Program]:
  """A train step on objects with `labels` from 0 and `masks` bool[N, H, W]; all is masked."""
  x = peers.image_tensor(image, torch.contiguous_format)
  masks, labels = (
    [torch.as_tensor(entry[key]).to(peers.device(), kind) for entry in objects]
    for key, kind in (('masks', torch.float32), ('labels', torch.int64))
  )

  def one(theirs: nn.Module) -> Program:
    loss_of = lambda found: found.loss
    return peers.train_step(_WithTargets(theirs.train(), masks, labels), loss_of, x, options, rate)

  return {name: one(theirs) for name, theirs in _variants(model, options)}


class _WithTargets(nn.Module):
  """x -> the outputs with the loss."""

  def __init__(self, model: nn.Module, masks: list[torch.Tensor], labels: list[torch.Tensor]):
    super().__init__()
    self.model, self.masks, self.labels = model, masks, labels

  def forward(self, x: torch.Tensor) -> Any:
    return self.model(pixel_values=x, mask_labels=self.masks, class_labels=self.labels)

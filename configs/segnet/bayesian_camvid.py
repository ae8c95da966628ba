r"""Bayesian SegNet-Basic (arXiv 1511.02680) on CamVid: dropout at test time.

SegNet-Basic with dropout 0.5 in its deeper encoders and decoders; evaluation and prediction average
the probabilities of `eval.samples` passes with dropout on, and their variance is the uncertainty,
which `segjax predict` writes as a picture. Released beside arXiv 1511.00561; no figure of that
paper is for it.

Cost: made for a GPU; at half resolution with --config.data.image_size='(180,240)'.

  segjax train --config=configs/segnet/bayesian_camvid.py --workdir=runs/bayesian \
    --config.data.source=CamVid/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'

  config.model = ml_collections.ConfigDict(
    {'name': 'segnet.SegNetBasic', 'classes': 11, 'dropout': 0.5}
  )
  config.losses = ml_collections.ConfigDict(
    {'softmax_cross_entropy': {'class_weights': 'median_frequency'}}
  )
  config.eval = ml_collections.ConfigDict({'metrics': ('confusion', 'boundary'), 'samples': 40})

  config.data = ml_collections.ConfigDict(
    {
      'name': 'camvid',
      'train_split': 'train',
      'eval_split': 'val',
      'batch_size': 12,
    }
  )
  config.optim = ml_collections.ConfigDict({'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9})
  config.train = ml_collections.ConfigDict(
    {
      'steps': 10_000,
      'eval_every': 1_000,
      'checkpoint_every': 1_000,
      'best_metric': 'pixel_accuracy',
      'recompute_batch_norm': True,
    }
  )
  return config

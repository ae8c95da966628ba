r"""SegNet-Basic and the other decoders of Table 1 (arXiv 1511.00561) on CamVid, as published.

Paper: Table 1, SegNet-Basic, global accuracy, class accuracy, mean IoU and BF on the 233 test
images: 82.7/62.0/47.7/35.78 with median-frequency balancing, 84.0/54.6/46.3/36.67 without. Recipe:
He initialization, SGD, learning rate 0.1, momentum 0.9, batch size 12, local contrast normalization
of the image, the checkpoint with the best validation global accuracy. The paper trains until the
loss converges; our schedule is 10,000 steps. Other decoders: --config.model.variant=FCN-Basic (see
VARIANTS in segjax/models/segnet.py). Without class balancing:
--config.losses.softmax_cross_entropy.class_weights=none.

Cost: 9 minutes on an H200 beside other trainings; for 2 CPU cores see basic_camvid_cpu.py.

  segjax train --config=configs/segnet/basic_camvid.py --workdir=runs/basic \
    --config.data.source=CamVid/
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = 'semantic'
  config.model = {'name': 'segnet.SegNetBasic', 'classes': 11, 'variant': 'SegNet-Basic'}
  config.losses = {'softmax_cross_entropy': {'class_weights': 'median_frequency'}}
  config.eval = {'metrics': ('confusion', 'boundary')}
  config.data = {'name': 'camvid', 'train_split': 'train', 'eval_split': 'val'}
  config.batch = {'size': 12}
  config.optim = {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9}
  config.train = {
    'steps': 10_000,
    'eval_every': 1_000,
    'checkpoint_every': 1_000,
    'best_metric': 'pixel_accuracy',
    'recompute_batch_norm': True,
  }
  return config

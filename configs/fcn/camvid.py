r"""FCN-8s on VGG16 (arXiv 1411.4038) on CamVid, as in SegNet's paper (arXiv 1511.00561).

Paper: SegNet's Table 3, global accuracy 81.97, class accuracy 54.38, mean IoU 46.59, BF 22.86 after
40,000 iterations, with learned deconvolution 83.21/56.05/48.68/27.40; trained on 3,433 images, here
on the 367 public ones. Recipe: as SegNet in configs/segnet/camvid.py. For fixed upsampling:
--config.model.learned=none.

Cost: needs a GPU; for 2 CPU cores see camvid_cpu.py.

  segjax train --config=configs/fcn/camvid.py --workdir=runs/fcn --config.data.source=CamVid/ \
    --config.init_from.path=weights/vgg16.pth
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, '../segnet/camvid.py')
  config.model = {'name': 'fcn.FCN', 'classes': 11, 'variant': '8s'}
  config.init_from.source = 'torchvision/vgg16'
  del config.train.recompute_batch_norm
  return config

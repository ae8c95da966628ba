r"""Bayesian SegNet-Basic (arXiv 1511.02680) on CamVid: dropout at test time.

SegNet-Basic with dropout 0.5 in its deeper stages. Evaluation and prediction average the
probabilities of `eval.samples` passes with dropout; their variance is the uncertainty, which
`segjax predict` writes as an image. Released along with arXiv 1511.00561, which reports no result
for it. Recipe: as basic_camvid.py.

Cost: needs a GPU; for half resolution --config.data.size.image_size='(180,240)'. Not run yet.

  segjax train --config=configs/segnet/bayesian_camvid.py --workdir=runs/bayesian \
    --config.data.source=CamVid/
"""

import ml_collections

from segjax.config import base_config


def get_config() -> ml_collections.ConfigDict:
  config = base_config(__file__, 'basic_camvid.py')
  config.model = {'name': 'segnet.SegNetBasic', 'classes': 11, 'dropout': 0.5}
  config.eval.samples = 40
  return config

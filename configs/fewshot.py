"""10-shot transfer: ridge regression on the features of a trained model.

Reproduces: the few-shot evaluation of V-MoE (2106.05974) and Soft MoE
(2308.00951): k images per class, frozen features, one penalty for all data
sets. A run of configs/pretrain.py measures ImageNet 10-shot already; this
config is for more data sets, other numbers of shots, and public checkpoints.

  python -m vmoe_study evaluate --workdir=PRETRAINED --out=DIR/fewshot.json \\
    --config=configs/fewshot.py:backbone=B/16,router=softmax_expert_choice

and from a public checkpoint with

  P=gs://vmoe_checkpoints/vmoe_b16_imagenet21k_randaug_strong
  python -m vmoe_study import-vmoe --prefix=$P --out=DIR
  python -m vmoe_study evaluate --workdir=DIR \\
    --config=configs/fewshot.py:data=imagenet21k

The arguments are those of configs/pretrain.py and describe the model; by
default `fewshot` is "many" here. --config.shots=1,5,10,25 measures more, and
--config.draws=5 averages over five draws of the images.

Data: nine data sets of TFDS, all to be prepared (`prepare`); fewshot=imagenet
for one. Hardware: any; one GPU or CPU is enough, smoke runs on one CPU core.
Expected: the table "soft_moe_9" of `configs/tables.py` has published ImageNet
10-shot numbers; for the other data sets none are quoted.
"""

from configs import pretrain

SHOTS = (10,)


def get_config(arguments: str = ""):
  """Returns the config; the module's docstring documents the arguments."""
  config = pretrain.get_config(f"fewshot=many,{arguments}")
  with config.unlocked():
    config.name += " few-shot"
    config.evaluations = {}
    config.shots = SHOTS
  return config

"""How many tokens change their expert if a model computes in bfloat16.

  python notebooks/figures/routing_dtype.py
  python notebooks/figures/routing_dtype.py WORKDIR

Without a workdir, the model is a random S/16 with 32 experts, on 24 crops of
scikit-learn's two photos; with one, it is that of a run of configs/digits.py,
on 359 digits. Prints percentages relative to float32, by routed layer.
"""

import sys

import cv2
import flax.linen as nn
import jax
import numpy as np
from sklearn.datasets import load_digits, load_sample_images

import vmoe_study
from vmoe_study.nn.vit import backbone_sizes

VARIANTS = {
  "bfloat16 residual": {"residual_dtype": "bfloat16"},
  "bfloat16 blocks": {"dtype": "bfloat16", "residual_dtype": "float32"},
  "both": {"dtype": "bfloat16"},
}


def favourites(module, params, images):
  """The expert with the largest logit of every token, by routed layer."""
  found = []

  def record(call, args, kwargs, context):
    result = call(*args, **kwargs)
    if context.method_name == "logits":
      found.append(result.clean.argmax(-1))
    return result

  with nn.intercept_methods(record):
    module.apply({"params": params}, images)
  return found


def of_run(workdir):
  """Model, parameters and images of a run on digits."""
  checkpoint = vmoe_study.open_checkpoint(workdir)
  images = load_digits().images[-359:, ..., None] / 8 - 1
  return checkpoint.module, checkpoint.params, np.float32(images)


def of_random_model():
  """Model, parameters and crops of photos."""
  random = np.random.default_rng(0)
  photos = load_sample_images().images
  crops = []
  for _ in range(24):
    photo, size = photos[random.integers(2)], random.integers(160, 420)
    y, x = (random.integers(side - size + 1) for side in photo.shape[:2])
    crop = photo[y : y + size, x : x + size]
    crops.append(cv2.resize(crop, (224, 224), interpolation=cv2.INTER_AREA))
  images = np.float32(crops) / 127.5 - 1
  options = {"num_experts": 32, "num_selected_experts": 1}
  moe = vmoe_study.MoeOptions("softmax_token_choice", options)
  module = vmoe_study.VisionTransformer(
    num_classes=10, **backbone_sizes("S/16"), moe=moe
  )
  return module, module.init(jax.random.key(0), images[:1])["params"], images


def main(*workdirs):
  """Prints a row per backbone_sizes."""
  module, params, images = of_run(*workdirs) if workdirs else of_random_model()

  def of(fields):
    other = module.clone(**fields)
    return jax.jit(lambda p, x: favourites(other, p, x))(params, images)

  exact = of({})
  for name, fields in VARIANTS.items():
    layers = zip(exact, of(fields), strict=True)
    print(name, *(f"{(a != b).mean():.2%}" for a, b in layers))


if __name__ == "__main__":
  main(*sys.argv[1:])

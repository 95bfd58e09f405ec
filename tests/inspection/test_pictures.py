"""Pictures and page say what the numbers say."""

import base64
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest
from matplotlib.image import imread

from vmoe_study.inspection import charts, pictures
from vmoe_study.inspection.content import PatchRouting
from vmoe_study.inspection.gallery import Gallery
from vmoe_study.inspection.measure import (
  ImageRouting,
  LayerRouting,
  TokenRouting,
)
from vmoe_study.inspection.page import render_page
from vmoe_study.inspection.result import Inspection
from vmoe_study.inspection.statistics import CapacityPoint, layer_statistics
from vmoe_study.study.statistics import Estimate

pytestmark = pytest.mark.slow

EXPERTS = 3
GRID = np.array([[[0, 1], [2, -1]], [[-1, 1], [1, 0]]])  # Expert of a patch.


@pytest.fixture(scope="module")
def gallery():
  """Two images of 2 x 2 patches after a class token, which expert 2 takes."""
  experts = np.concatenate([[[2], [2]], GRID.reshape(2, 4)], axis=1)
  sent = (experts[..., None] == np.arange(EXPERTS)).astype(float)
  sent[0, 1, 2] = 1  # A second expert, with a smaller combine weight.
  returned = sent * [0.9, 0.8, 0.5]
  tokens = TokenRouting(sent, returned, returned)
  tensor = sent.reshape(10, EXPERTS, 1)
  return Gallery(
    images=np.random.default_rng(0).uniform(-1, 1, (2, 6, 6, 1)),
    titles=["shoe", "bag"],
    count=2,
    patch_size=3,
    layers={"encoderblock_1": LayerRouting(tokens, tensor, tensor / 2)},
  )


@pytest.fixture(scope="module")
def inspection(gallery):
  sent = np.random.default_rng(0).uniform(0, 9, (6, EXPERTS))
  counts = np.tile([1.0, 3.0, 1.0, 0.0], (6, 1))
  layer = layer_statistics(
    ImageRouting(sent, sent / 20, counts, np.ones(6)),
    PatchRouting(*np.ones((3, 6, 2))),
    np.eye(2)[np.arange(6) % 2],
    10.0,
    np.ones(6),
    np.arange(24).reshape(6, 4) % 5 > 0,
  )
  estimate = Estimate(0.75, 0.125, 6)
  names = ["encoderblock_1", "encoderblock_3"]
  shown = dict.fromkeys(names, gallery.layers[names[0]])
  return Inspection(
    name="a <run>",
    router="softmax_expert_choice",
    step=7,
    data="test",
    class_names=["shoe", "bag"],
    num_images=6,
    tokens_per_image=5,
    group_images=2,
    trained_capacity=1.0,
    capacity_factor=1.0,
    slots_per_expert=1,
    accuracy=estimate,
    layers=dict.fromkeys(names, layer),
    capacities=[CapacityPoint(2.0, 2, estimate, Estimate(0.125, 0.25, 6))],
    left_out=["capacity_factor=0.1 leaves no slot"],
    gallery=dataclasses.replace(gallery, layers=shown),
    metrics=[],
  )


def texts(axes):
  return [text.get_text() for text in axes.texts]


def test_patches_carry_the_numbers_of_their_experts(gallery):
  figure = pictures.patches_picture(gallery)
  [_, first], [_, second] = np.reshape(figure.axes[:4], (2, 2))
  assert texts(first) == ["0", "1", "2"] and texts(second) == ["1", "1", "0"]
  assert first.texts[1].get_position() == (4, 1)  # Middle of the right patch.
  shown = first.images[0].get_array()
  plain = gallery.picture(0)
  np.testing.assert_allclose(shown[3:, 3:], plain[3:, 3:])  # No expert.
  assert np.abs(shown[:3, :3] - plain[:3, :3]).max() > 0.1


def test_patches_of_an_expert_stand_out(gallery):
  tokens = gallery.layers["encoderblock_1"].tokens
  assert pictures.top_experts(tokens, 2) == [1, 2, 0]  # 2.4, 2.0, 1.8.
  figure = pictures.experts_picture(gallery, "encoderblock_1")
  titles = [axes.get_title() for axes in figure.axes[:4]]
  assert titles == ["image", "expert 1", "expert 2", "expert 0"]
  shown = figure.axes[1].images[0].get_array()
  plain = gallery.picture(0)
  share = 0.8 / 0.9  # Of expert 1 and of the largest combine weight, expert 0.
  contrast = pictures.MIN_CONTRAST + (1 - pictures.MIN_CONTRAST) * share
  expected = pictures.GREY + contrast * (plain[:3, 3:] - pictures.GREY)
  np.testing.assert_allclose(shown[:3, 3:], expected.clip(0, 1))
  assert np.abs(shown[3:] - pictures.GREY).max() < pictures.MIN_CONTRAST


def test_patches_that_an_expert_takes_are_outlined(gallery):
  figure = pictures.experts_picture(gallery, "encoderblock_1")
  assert outlines(figure.axes[0]) == []
  # The corners of expert 1's patches, of 3 x 3 pixels, on both images.
  assert outlines(figure.axes[1]) == [[2.5, -0.5, 3, 3]]
  assert outlines(figure.axes[5]) == [[2.5, -0.5, 3, 3], [-0.5, 2.5, 3, 3]]


def outlines(axes):
  paths = [path for part in axes.collections for path in part.get_paths()]
  return [list(path.get_extents().bounds) for path in paths]


def test_nothing_is_outlined_where_every_expert_takes_everything(gallery):
  layer = gallery.layers["encoderblock_1"]
  tokens = layer.tokens._replace(
    dispatched=np.full_like(layer.tokens.dispatched, 0.1)
  )
  soft = dataclasses.replace(
    gallery, layers={"encoderblock_1": layer._replace(tokens=tokens)}
  )
  figure = pictures.experts_picture(soft, "encoderblock_1")
  assert not any(map(outlines, figure.axes))


def test_a_bar_of_no_height_is_marked(inspection):
  layer = inspection.layers["encoderblock_1"]
  drops = [Estimate(0.0, 0.0, 6), *layer.accuracy_drop[1:]]
  layer = dataclasses.replace(layer, accuracy_drop=drops)
  load, *_, drops = charts.expert_charts(layer).axes
  assert marked(drops) == [[0, 0]] and marked(load) == []


def marked(axes):
  [marks] = [line for line in axes.lines if line.get_marker() == "D"]
  return marks.get_xydata().tolist()


def test_the_training_capacity_hides_no_point(inspection):
  [axes] = charts.capacity_chart(
    inspection.capacities, inspection.trained_capacity
  ).axes
  [line] = [x for x in axes.lines if x.get_label() == "in training"]
  points = [x for x in axes.lines if x is not line]
  assert points and line.zorder < min(x.zorder for x in points)


def test_tensors_are_tokens_by_slots(gallery):
  layer = gallery.layers["encoderblock_1"]
  figure = pictures.tensors_picture(layer, tokens_per_image=5)
  dispatch, combine = figure.axes[0].images[0], figure.axes[1].images[0]
  np.testing.assert_array_equal(dispatch.get_array(), layer.dispatch[..., 0])
  np.testing.assert_array_equal(combine.get_array(), layer.combine[..., 0])


def test_training_curves_are_read_by_name():
  rows = [{"step": 0, "test/accuracy": 0.1}]
  for step, load in ((10, 3.0), (20, 2.0)):
    rows.append({"step": step, "train/routing/encoderblock_1/max_load": load})
  figure = charts.training_chart(rows, ["encoderblock_1"])
  busiest = figure.axes[0].lines[0]
  np.testing.assert_array_equal(busiest.get_xydata(), [[10, 3], [20, 2]])
  assert charts.training_chart(rows[:1], ["encoderblock_1"]) is None


def test_layers_of_equal_load_share_a_line():
  loads = {"a": (1.0, 1.0), "b": (1.5, 0.5), "c": (1.0, 1.0)}
  row = {
    f"train/routing/{layer}/{name}": load
    for layer, pair in loads.items()
    for name, load in zip(("max_load", "min_load"), pair, strict=True)
  }
  figure = charts.training_chart([{"step": 10, **row}], list(loads))
  labels = [line.get_label() for line in figure.axes[0].lines]
  assert labels == ["b, busiest", "b, least busy", "all experts equal:\na\nc"]


class Reader(html.parser.HTMLParser):
  """Checks that tags nest; collects headings, links, anchors and images."""

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.text = [], [], ""

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ("img", "meta"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def read(text):
  reader = Reader()
  reader.feed(text)
  assert not reader.open
  return reader


@pytest.fixture(scope="module")
def drawn(inspection):
  """Every picture of the page, small."""
  files = {}
  for name, figure in inspection.figures().items():
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    files[name] = file.getvalue()
  return files


def test_the_page_holds_everything(inspection, drawn):
  text = render_page(inspection, drawn)
  reader = read(text)
  anchors = {attrs["id"] for _, attrs in reader.tags if "id" in attrs}
  links = {attrs["href"] for tag, attrs in reader.tags if tag == "a"}
  assert links == {f"#{anchor}" for anchor in anchors}
  assert {"run", "encoderblock_1", "encoderblock_3"} < anchors
  images = [attrs for tag, attrs in reader.tags if tag == "img"]
  assert len(images) == len(drawn) and all(image["alt"] for image in images)
  for image in images:
    data = image["src"].removeprefix("data:image/png;base64,")
    assert imread(io.BytesIO(base64.b64decode(data))).ndim == 3
  assert "a <run>" in reader.text and "no routing metrics" in reader.text
  assert "75.00 ± 12.50 %" in reader.text
  assert "+12.50 ± 25.00 points" in reader.text
  assert "capacity_factor=0.1 leaves no slot" in reader.text


def test_the_page_needs_nothing_else(inspection, drawn):
  text = render_page(inspection, drawn)
  without_data = re.sub(r"base64,[^\"]*", "", text)
  assert not re.search(r"https?:|//|<script|<link|@import", without_data)


def test_the_page_of_a_dense_model(inspection):
  dense = dataclasses.replace(
    inspection, router="dense", layers={}, capacities=[], capacity_factor=None
  )
  reader = read(render_page(dense, {}))
  assert "no MoE layers" in reader.text
  assert not [tag for tag, _ in reader.tags if tag == "img"]


def test_soft_moe_has_no_capacity_to_change(inspection, drawn):
  soft = dataclasses.replace(inspection, router="soft", capacities=[])
  reader = read(render_page(soft, drawn))
  assert "slots of Soft MoE are parameters" in reader.text
  assert "every slot is a mixture of all tokens" in " ".join(
    reader.text.split()
  )


def test_one_image_of_a_gallery(gallery):
  one = gallery.only(1)
  tokens, both = (g.layers["encoderblock_1"].tokens for g in (one, gallery))
  assert (one.titles, one.count) == (["bag"], 1)
  np.testing.assert_array_equal(one.picture(0), gallery.picture(1))
  np.testing.assert_array_equal(
    one.on_grid(tokens.combined, 0), gallery.on_grid(both.combined, 1)
  )

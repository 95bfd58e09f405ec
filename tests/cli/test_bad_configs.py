"""Whatever stands in a config or on the command line: a clear answer, soon."""

import contextlib
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import digits
from vmoe_study import __version__
from vmoe_study.cli.main import COMMANDS, main
from vmoe_study.config import parse
from vmoe_study.run import train as train_lib
from vmoe_study.run.experiment import Model, Training

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(60)]

ROUTERS = ("softmax_token_choice", "sinkhorn_expert_choice", "soft", "dense")
CONFIGS = {r: digits.get_config(f"router={r}").to_dict() for r in ROUTERS}
HUGE = [10**9, 10**12, 10**30, -(10**18), 1e300, -1e300]
ODD = [
  "",
  "None",
  "nan",
  "inf",
  "-inf",
  "1e999",
  "True",
  "()",
  "(1,",
  "'",
  "\0",
]
ODD_WORDS = ["--", "-x", "--config=", "--step=-1", "--out=", "."]
fuzz = settings(deadline=None, derandomize=True, database=None)


def fields(values: Any, path: str = "") -> list[str]:
  if not isinstance(values, dict) or not values:
    return [path]
  return [
    name
    for key, value in values.items()
    for name in fields(value, f"{path}.{key}" if path else key)
  ]


def replaced(values: Any, path: str, value: Any) -> dict[str, Any]:
  key, _, rest = path.partition(".")
  inner = replaced(values[key], rest, value) if rest else value
  return {**values, key: inner}


numbers = st.integers() | st.floats() | st.sampled_from(HUGE)
scalars = numbers | st.booleans() | st.none() | st.text(max_size=8)
anything = st.recursive(
  scalars,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=8), inner, max_size=3)
  ),
  max_leaves=5,
)


@pytest.fixture(scope="module", autouse=True)
def _no_training():
  """A config that is accepted goes no further."""

  def stop(*unused):
    raise ValueError("accepted")

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_lib, "open_train_input", stop)
    yield


def command_line(*words: str) -> tuple[int, str]:
  """Exit code and what is said on stderr."""
  said = io.StringIO()
  with contextlib.redirect_stderr(said):
    try:
      code = main([*words])
    except SystemExit as stop:
      code = stop.code
  return code, said.getvalue()


def check(*words: str) -> str:
  return check_command("train", "--workdir=nowhere", *words)


def check_command(*words: str) -> str:
  code, said = command_line(*words)
  assert code == 2 and "error: " in said, (words, code, said)
  assert "Traceback" not in said, (words, said)
  assert "\n\n" not in said.strip(), said
  return said


FILE = "--config=configs/digits.py"


@settings(fuzz, max_examples=150)
@given(
  st.sampled_from(ROUTERS).flatmap(
    lambda router: st.tuples(
      st.just(router), st.sampled_from(fields(CONFIGS[router]))
    )
  ),
  (numbers | st.booleans()).map(str) | st.sampled_from(ODD) | st.text(),
)
def test_any_value_of_any_field(place, value):
  router, field = place
  check(f"{FILE}:router={router}", f"--config.{field}={value}")


@settings(fuzz, max_examples=60)
@given(st.lists(st.text() | st.sampled_from(["--", "-x", FILE]), max_size=4))
def test_any_words(words):
  words = [word for word in words if word not in ("--help", "-h", "--debug")]
  check(*words)


@pytest.mark.parametrize(
  "command", [name for name in COMMANDS if name != "train"]
)
@settings(fuzz, max_examples=25)
@given(st.lists(st.text() | st.sampled_from(ODD_WORDS), max_size=4))
def test_any_words_after_any_command(command, words):
  check_command(command, "--workdir=nowhere", *words)


@settings(fuzz, max_examples=40)
@given(st.text(max_size=30))
def test_any_arguments_of_a_config(arguments):
  check(f"{FILE}:{arguments}")


@pytest.mark.parametrize(
  ("words", "answer"),
  [
    (
      [f"{FILE}:router=softmax_expert_choise"],
      "choise: config.model: router: unknown name 'softmax_expert_choise'. Did "
      "you mean 'softmax_expert_choice'?",
    ),
    (
      [f"{FILE}:router=softmax_token_choice,k=9"],
      "softmax_token_choice.num_selected_experts=9: must be from 1 to "
      "num_experts=8.",
    ),
    (
      [FILE, "--config.train.btach_size=3"],
      "error: config.train: unknown name 'btach_size'. Did you mean "
      "'batch_size'? Valid names: accumulation, batch_size, ",
    ),
    (
      [FILE, "--config.train.batch-size=3"],
      "config.train: unknown name 'batch-size'. Did you mean 'batch_size'?",
    ),
    (
      [FILE, "--config.evaluations.val.batch_size=3"],
      "config.evaluations: unknown name 'val'. Valid names: test.",
    ),
    (
      [FILE, "--config.seed.of=3"],
      "config.seed: unknown name 'of'. Valid names: none.",
    ),
    (
      [FILE, "--config.seed=1", "--config.train.batch_size=many"],
      "error: --config.train.batch_size=many: must be int.",
    ),
    ([FILE, "--config.train.mixup=x"], "mixup=x: must be float."),
    ([FILE, "--config.fewshot=3"], "fewshot=3: must be a dict, like"),
    ([FILE, "--config.shots=(1, a"], "shots=(1, a: must be a tuple, like"),
    (["--config=README.md"], "--config=README.md: SyntaxError: "),
  ],
)
def test_what_is_wrong_has_its_full_name_a_rule_and_a_remedy(words, answer):
  assert answer in check(*words)


def test_all_problems_of_a_config_file_are_said(tmp_path):
  file = tmp_path / "wrong.py"
  file.write_text(
    "from configs import digits\n"
    "from vmoe_study.config import parse\n"
    "def get_config():\n"
    "  values = digits.get_config().to_dict()\n"
    "  values['train'] |= {'keep': 'a', 'mixup': 'b'}\n"
    "  parse(values)\n"
  )
  said = check(f"--config={file}")
  assert "config.train.keep='a'" in said and "config.train.mixup='b'" in said


@pytest.mark.parametrize(
  ("words", "usage"),
  [
    (["evaluate", "--workdir=nowhere", "--kind=foo"], "evaluate [-h]"),
    (["bench", "solver", "--kind=foo"], "bench solver [-h]"),
  ],
)
def test_an_unknown_option_shows_the_usage_of_its_command(words, usage):
  said = check_command(*words)
  assert said.startswith(f"usage: vmoe-study {usage}")
  assert "unrecognized arguments: --kind=foo" in said


def test_version(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["--version"])
  assert stop.value.code == 0
  assert capsys.readouterr().out == f"vmoe-study {__version__}\n"


@settings(fuzz, max_examples=300)
@given(
  st.sampled_from(ROUTERS).flatmap(
    lambda router: st.tuples(
      st.just(router), st.sampled_from(fields(CONFIGS[router]))
    )
  ),
  anything | st.sampled_from(HUGE),
)
def test_whatever_python_puts_into_a_field(place, value):
  """A config file can put anything there; accepted or a ValueError."""
  router, field = place
  with contextlib.suppress(ValueError):
    parse(replaced(CONFIGS[router], field, value))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@settings(fuzz, max_examples=60)
@given(
  st.sampled_from(
    [f for f in fields(CONFIGS["softmax_token_choice"]) if "model" in f]
  ),
  st.sampled_from([*HUGE, 0, 1, 2, 3, -1, 0.5, 10**5]),
)
def test_what_is_accepted_can_be_built_or_is_refused(field, value):
  """Shapes only: nothing of that size is allocated."""
  if field.endswith("_weight"):
    value = float(value)  # The tests' own type checks take no int for it.
  values = replaced(CONFIGS["softmax_token_choice"], "model.fields.depth", 1)
  values = replaced(values, "model.moe.blocks", "every 1")
  with contextlib.suppress(ValueError):
    model = Model(parse(replaced(values, field, value)), (8, 8, 1))
    Training(model, num_examples=1438)


@pytest.mark.parametrize("field", ["shots[0]=", "shots[0]=3", "train[a]=1"])
def test_parts_of_a_value_are_not_changed_alone(field):
  said = check(FILE, f"--config.{field}")
  name = field.partition("[")[0]
  assert "changed alone. Give the whole value" in said
  assert f"--config.{name}=VALUE" in said


@pytest.mark.parametrize(
  ("change", "answer"),
  [
    ("['train'][1] = 2", "config.train: has names that are not strings."),
    ("['fewshot'] = {1: {}}", "config.fewshot: the name 1 (int) must be a str"),
    ("['model']['moe']['options'] = {2: 3}", "options: the name 2 (int) must"),
    ("[3] = 3", "config: has names that are not strings."),
  ],
)
def test_names_that_are_no_strings(change, answer, tmp_path):
  file = tmp_path / "numbers.py"
  file.write_text(
    "from configs import digits\n"
    "from ml_collections import ConfigDict\n"
    "def get_config():\n"
    "  values = digits.get_config().to_dict()\n"
    f"  values{change}\n"
    "  return ConfigDict(values)\n"
  )
  assert answer in check(f"--config={file}")


def test_a_config_file_returns_a_config_dict(tmp_path):
  file = tmp_path / "plain.py"
  file.write_text("def get_config():\n  return {}\n")
  said = check(f"--config={file}")
  assert "get_config returned dict: must be a ConfigDict" in said


def test_options_of_the_command_line_have_names_that_are_strings():
  said = check(FILE, "--config.model.moe.options={1:2}")
  assert "config.model.moe.options: the name 1 (int) must be a string" in said


def test_a_long_value_is_cut():
  said = check(FILE, f"--config.shots={'(' * 9999}")
  assert len(said) < 400 and "must be int" in said

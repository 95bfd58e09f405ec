"""Writes the first cells and badges of the notebooks, and executes them.

  python notebooks/render.py            all notebooks
  python notebooks/render.py NAME ...   some, as in look_at_routers.ipynb

Outputs are kept, except standard error (progress, times).
"""

import base64
import io
import pathlib
import sys

import nbformat
from nbclient import NotebookClient
from PIL import Image

# Address of the project, such as "https://github.com/USER/vmoe_study". Once it
# is filled in, notebooks install the package from there and have a Colab badge.
REPOSITORY = ""

HERE = pathlib.Path(__file__).resolve().parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
COLAB = "https://colab.research.google.com/github"
GITHUB = "https://github.com/"
FIRST_CELL = """\
# Outside of a clone, as on Colab: fetches and installs the project.
import importlib.util
import pathlib

REPOSITORY = "{repository}"
CLONE = pathlib.Path("vmoe_study_clone")

if not pathlib.Path("install.py").exists():
  if REPOSITORY and not CLONE.exists():
    !git clone -q --depth 1 "$REPOSITORY" "$CLONE"
  if CLONE.exists():
    %cd -q "$CLONE/notebooks"
if importlib.util.find_spec("vmoe_study") is None:
  if not pathlib.Path("install.py").exists():
    raise ValueError(
      "vmoe_study is not installed: open this notebook in a clone, or fill in "
      "the address of the project as REPOSITORY above."
    )
  %run install.py"""


def badge(name: str, repository: str) -> str:
  """The link that opens a notebook in Colab, in Markdown."""
  place = repository.removeprefix(GITHUB)
  address = f"{COLAB}/{place}/blob/main/notebooks/{name}"
  return f"[![Open in Colab]({BADGE})]({address})"


def render(
  notebook: nbformat.NotebookNode, name: str, repository: str = REPOSITORY
) -> None:
  """Writes the badge below the title, and the first code cell.

  Raises:
    ValueError: the repository is not on GitHub, from which Colab opens it.
  """
  if repository and not repository.startswith(GITHUB):
    raise ValueError(
      f"REPOSITORY={repository!r}: must begin with {GITHUB!r}, as Colab opens "
      "notebooks from there. Give such an address, or none."
    )
  title, first = notebook.cells[:2]
  lines = [line for line in title.source.split("\n") if BADGE not in line]
  text = "\n".join(lines[1:]).strip("\n")
  badges = [badge(name, repository)] if repository else []
  title.source = "\n\n".join([lines[0], *badges, text])
  first.source = FIRST_CELL.format(repository=repository)


def execute(notebook: nbformat.NotebookNode) -> None:
  """Runs the notebook in its folder; keeps outputs that do not vary by run."""
  client = NotebookClient(
    notebook,
    timeout=1200,
    record_timing=False,
    coalesce_streams=True,
    resources={"metadata": {"path": str(HERE)}},
  )
  client.execute()
  notebook.metadata.language_info = {"name": "python"}
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
      for data in (output.get("data", {}) for output in cell.outputs):
        if "image/png" in data:
          data["image/png"] = _with_palette(data["image/png"])


def _with_palette(png: str) -> str:
  """A smaller image, with at most 256 colours; base64, as in notebooks."""
  image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
  content = io.BytesIO()
  image.quantize(256).save(content, "png", optimize=True)
  return base64.b64encode(content.getvalue()).decode()


def main() -> None:
  """Renders and executes the named notebooks, or all."""
  names = sys.argv[1:] or sorted(path.name for path in HERE.glob("*.ipynb"))
  for name in names:
    notebook = nbformat.read(HERE / name, as_version=4)
    render(notebook, name)
    execute(notebook)
    nbformat.write(notebook, HERE / name)
    print(name)


if __name__ == "__main__":
  main()

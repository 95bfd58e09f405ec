"""HTML pages: single, self-contained files in one layout."""

import base64
import importlib.resources
from collections.abc import Callable, Mapping

import jinja2

_SHARED = ("layout.html.jinja", "parts.html.jinja")


def page_template(
  package: str, name: str, filters: Mapping[str, Callable] | None = None
) -> jinja2.Template:
  """A page's template, which extends `layout.html.jinja`.

  Args:
    package: the package that holds the template.
    name: name of the template file.
    filters: template filters in addition to "anchor" and "data_url".
  """
  places = dict.fromkeys(_SHARED, __package__) | {name: package}
  texts = {
    file: (importlib.resources.files(place) / file).read_text()
    for file, place in places.items()
  }
  environment = jinja2.Environment(
    loader=jinja2.DictLoader(texts),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters |= {"anchor": anchor, "data_url": data_url}
  environment.filters |= filters or {}
  return environment.get_template(name)


def anchor(name: str) -> str:
  """The HTML anchor of a section."""
  return "-".join(name.lower().split())


def data_url(png: bytes) -> str:
  """A PNG file as a data URL."""
  return f"data:image/png;base64,{base64.b64encode(png).decode()}"

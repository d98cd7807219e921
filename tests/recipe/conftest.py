from collections.abc import Callable

import pytest

from understudy.recipe.reader import build_recipe, parse
from understudy.recipe.schema import Recipe

RECIPE = """\
name: small
data: digits
teacher:
  name: cnn
  widths: [8, 16]
student:
  name: mlp
  hidden: [8]
method: kd
train:
  epochs: 3
  lr: 1e-2
"""


@pytest.fixture
def text() -> str:
    return RECIPE


@pytest.fixture
def read() -> Callable[..., Recipe]:
    def read_text(text: str, *overrides: str) -> Recipe:
        return build_recipe(parse(text.encode(), "r.yaml"), overrides)

    return read_text

"""understudy: train a small model to do a large one's job, and prove how well it does it."""

import sys
from types import ModuleType

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Functions here, and folders of the same names beside this file.
_FUNCTIONS = ("compare", "distill", "evaluate", "run", "train")


class _Front(ModuleType):
    """Keeps `understudy.run` a function: importing `understudy.run.start` would put the folder in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _FUNCTIONS or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front

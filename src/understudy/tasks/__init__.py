"""What a kind of experiment is: its models, data, step and metric, built from a recipe."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

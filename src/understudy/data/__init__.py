"""Where samples come from, how they are varied, and in what order they are served."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

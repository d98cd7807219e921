"""Diagrams: boxes that are nodes of trees, their parents, how to find and score them, and data to train on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

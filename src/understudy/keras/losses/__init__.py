"""The losses of `understudy.losses` in `keras.ops`: one source for torch, JAX and TensorFlow."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

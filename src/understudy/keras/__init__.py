"""The Keras front: the same losses in `keras.ops` and a Distiller that is a `keras.Model`, on torch, JAX or TensorFlow.

Keras reads its backend once, from `KERAS_BACKEND` or `~/.keras/keras.json`, when it is first imported. Nothing here
imports torch on another backend.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

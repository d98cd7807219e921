"""`keras.ops` for code that is type-checked: Keras annotates its operations too narrowly for tensors of a backend."""

from typing import Any

from keras import ops as _ops

ops: Any = _ops

"""Detectors: sparse training, channel pruning, recovery by distillation, export, comparison.

They are ultralytics' (YOLOv8, 11, 12, 26), which is AGPL-3.0 and is imported when something here is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

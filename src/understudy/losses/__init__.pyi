from .cross_entropy import CrossEntropy as CrossEntropy
from .hard import HardLabel as HardLabel
from .kd import KD as KD
from .logits import LogitMSE as LogitMSE

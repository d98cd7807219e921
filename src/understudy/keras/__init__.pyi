from . import losses as losses
from .api import compare as compare
from .api import distill as distill
from .distiller import Distiller as Distiller
from .methods import objectives_of as objectives_of
from .objective import Objective as Objective
from .objective import Schedule as Schedule
from .teacher import Teacher as Teacher

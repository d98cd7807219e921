from . import data as data
from . import keras as keras
from . import losses as losses
from . import models as models
from .api import cache as cache
from .api import compare as compare
from .api import distill as distill
from .api import resume as resume
from .api import run as run
from .api import train as train
from .distill import Distiller as Distiller
from .distill import Mutual as Mutual
from .distill import Objective as Objective
from .distill import Schedule as Schedule
from .distill import Share as Share
from .distill import Teacher as Teacher
from .errors import RunError as RunError
from .errors import UserError as UserError
from .evaluate import evaluate as evaluate
from .models import load as load
from .tasks import detect as detect
from .tasks import diffusion as diffusion

__version__: str

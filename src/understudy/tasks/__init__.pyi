from . import classify as classify
from . import detect as detect
from . import diffusion as diffusion

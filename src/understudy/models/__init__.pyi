from .build import add as add
from .build import build as build
from .store import Card as Card
from .store import load as load
from .store import read_card as read_card
from .store import save as save
from .weights import load_weights as load_weights
from .weights import read_weights as read_weights

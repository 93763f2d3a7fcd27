"""The ten stops, in their order."""

from .change import CHANGE
from .decided import DECIDED
from .first import FIRST
from .guess import GUESS
from .looks import LOOKS
from .numbers import NUMBERS
from .push import PUSH
from .sees import SEES
from .snow import SNOW
from .step import STEP

STOPS = (SNOW, SEES, FIRST, STEP, DECIDED, CHANGE, PUSH, LOOKS, NUMBERS, GUESS)

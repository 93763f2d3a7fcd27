"""The ten stops, in their order."""

from .change import CHANGE
from .first import FIRST
from .numbers import NUMBERS
from .push import PUSH
from .sees import SEES
from .snow import SNOW
from .step import STEP

STOPS = (SNOW, SEES, FIRST, STEP, CHANGE, PUSH, NUMBERS)

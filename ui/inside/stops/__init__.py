"""The ten stops, in their order."""

from .change import CHANGE
from .snow import SNOW
from .step import STEP

STOPS = (SNOW, STEP, CHANGE)

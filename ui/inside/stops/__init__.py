"""The ten stops, in their order."""

from .snow import SNOW
from .step import STEP

STOPS = (SNOW, STEP)

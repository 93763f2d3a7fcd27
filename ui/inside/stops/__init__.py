"""The ten stops, in their order."""

from .first import FIRST
from .push import PUSH
from .sees import SEES
from .snow import SNOW
from .step import STEP

STOPS = (SNOW, SEES, FIRST, STEP, PUSH)

"""The mark of generated media, as a reader of files finds it."""

from __future__ import annotations

import io
from xml.etree import ElementTree

from PIL import Image

SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def is_marked(file: bytes, term: str = "trainedAlgorithmicMedia") -> bool:
    """Whether a picture says, once, that a trained model made it, or a part (IPTC Photo Metadata Standard)."""
    with Image.open(io.BytesIO(file)) as image:
        packet = image.info.get("xmp")
    marks = [] if packet is None else [node.get(SOURCE_TYPE) for node in ElementTree.fromstring(packet).iter()]
    return marks.count(TERMS + term) == 1

"""The mark of generated media, as a reader of files finds it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from xml.etree import ElementTree

from av.video.reformatter import Colorspace
from PIL import Image

SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"


READ = {"src_colorspace": Colorspace.ITU709, "dst_colorspace": Colorspace.DEFAULT}
"""PyAV's options for the colours of a film; below 17 it does not go by what the file says."""
XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def boxes(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of the boxes of an MP4 file."""
    while file:
        size = int.from_bytes(file[:4], "big")
        yield file[4:8], file[8:size]
        file = file[size:]


def packet_of(file: bytes) -> bytes | None:
    """Return the packet of XMP in a picture or in an MP4 file."""
    if file[4:8] == b"ftyp":
        packets = [content[16:] for kind, content in boxes(file) if kind == b"uuid" and content[:16] == XMP]
        return packets[0] if len(packets) == 1 else None
    with Image.open(io.BytesIO(file)) as image:
        return image.info.get("xmp")


def is_marked(file: bytes, term: str = "trainedAlgorithmicMedia") -> bool:
    """Whether a file says, once, that a trained model made it, or a part of it (IPTC Photo Metadata Standard)."""
    packet = packet_of(file)
    marks = [] if packet is None else [node.get(SOURCE_TYPE) for node in ElementTree.fromstring(packet).iter()]
    return marks.count(TERMS + term) == 1

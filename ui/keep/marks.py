"""The mark of generated media: IPTC's digital source type of a picture, and that of the photo behind it.

The terms and their definitions: http://cv.iptc.org/newscodes/digitalsourcetype
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

from stable_diffusion.request import Picture, Request

TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TRAINED, COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
LOW_STRENGTH = 0.5
"""Strength below which a picture counts as a changed photo: from there on the prompt takes over."""

INFO = "digital source type"
"""The key of a photo's mark in the `info` of the picture that was read from it."""
BLOCK = 2**20


@dataclass(frozen=True)
class Mark:
    """The mark of a picture: its digital source type and, for a composite, the photo as the run used it."""

    source_type: str = TRAINED
    photo: Image.Image | None = None

    @property
    def xmp(self) -> str:
        """The mark as a packet of XMP (IPTC Photo Metadata Standard, Digital Source Type)."""
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
            f'Iptc4xmpExt:DigitalSourceType="{TERMS}{self.source_type}"/>'
            '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
        )


def mark_of(request: Request) -> Mark:
    """Return the mark of the pictures of a complete request, whose photo and mask are pictures.

    A picture is a composite ("compositing of trained algorithmic media with some other media, such as with inpainting
    or outpainting operations") where a real photo remains in it: outside a mask, or at a strength below 0.5. Any other
    is trained algorithmic media. The photo's own mark is kept: a photo that a model made leaves nothing real.
    """
    photo, mask = request.image, request.mask
    if not isinstance(photo, Image.Image) or photo.info.get(INFO) == TRAINED:
        return Mark()
    assert request.strength is not None, "a complete request with a photo has its strength"
    masked = isinstance(mask, Image.Image) and ImageChops.invert(mask).getbbox() is not None
    return Mark(COMPOSITE, photo) if masked or request.strength < LOW_STRENGTH else Mark()


def keep_mark(photo: Picture, image: Image.Image) -> None:
    """Note the mark of a photo, a file or a picture, in the `info` of the picture that was read from it."""
    source_type = photo.info.get(INFO) if isinstance(photo, Image.Image) else uploaded_source_type(photo)
    if source_type is not None:
        image.info[INFO] = source_type


def uploaded_source_type(path: str | Path) -> str | None:
    """Return the digital source type of a picture's file, if it says that a model made it or a part of it.

    The term is looked for anywhere in the file, so that XMP and content credentials are read in every format. Of both
    terms the composite counts: content credentials name the parts of a picture too.
    """
    from stable_diffusion.images import open_image

    with open(path, "rb") as file:
        packet = open_image("image", file).info.get("xmp")  # a PNG may hold it compressed
        found, before = terms_in(packet) if isinstance(packet, bytes) else set(), b""
        file.seek(0)
        while block := file.read(BLOCK):
            found |= terms_in(before + block)
            before = block[-100:]  # the beginning of a term
    return next((term for term in (COMPOSITE, TRAINED) if term in found), None)


def terms_in(content: bytes) -> set[str]:
    """Return the terms in a part of a file, with http or https before them."""
    return {term for term in (COMPOSITE, TRAINED) if f"{TERMS}{term}".removeprefix("http:").encode() in content}

"""Films as MP4 files (H.264), which any chat takes, with settings as text, mark, and content credentials."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from uuid import UUID

from PIL import Image

from .credentials import with_credentials
from .marks import Mark

RATE = 30
"""Frames a second."""
XMP_BOX = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes
"""The type of the `uuid` box that holds XMP (XMP Specification, part 3, MPEG-4)."""
BT709 = 1
"""The number of that recommendation's colours in H.264 (ITU-T H.273); without it, players guess by the size."""
INDEX_BYTES = 2**15
"""Room for the index of a film before its pictures, beside its text, so that it plays while it is still on its way."""


@cache
def has_h264() -> bool:
    """Return whether PyAV is here and can encode H.264."""
    try:
        import av
    except ImportError:
        return False
    return "libx264" in av.codecs_available


def encoded_video(frames: Iterable[tuple[Image.Image, int]], side: int, text: str, mark: Mark) -> bytes:
    """Return an MP4 file of square pictures, each with its duration in frames of 1/30 s.

    side: that of each picture in pixels, even. text: the comment.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    buffer, place = io.BytesIO(), 0
    room = {"moov_size": str(INDEX_BYTES + len(text.encode("utf-8", "replace")))}
    with av.open(buffer, "w", format="mp4", options=room) as file:
        file.metadata["comment"] = text.encode("utf-8", "replace").decode("utf-8")  # without halves of surrogate pairs
        # One thread: many visitors may save at once. Repeated frames cost next to nothing.
        stream = file.add_stream("libx264", rate=RATE, options={"crf": "18", "preset": "veryfast", "threads": "1"})
        context = stream.codec_context
        context.pix_fmt, context.color_range = "yuv420p", ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.width = context.height = side
        for picture, duration in frames:
            frame = av.VideoFrame.from_image(picture).reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.time_base = Fraction(1, RATE)
            for _ in range(duration):
                frame.pts, place = place, place + 1
                file.mux(stream.encode(frame))
        file.mux(stream.encode())
    content = buffer.getvalue() + box(b"uuid", XMP_BOX + mark.xmp.encode())
    return with_credentials(content, "video/mp4", mark)  # last: any later change would break their signature


def box(kind: bytes, content: bytes) -> bytes:
    """Return a box of an MP4 file (ISO/IEC 14496-12, 4.2): size, type, content."""
    return (8 + len(content)).to_bytes(4, "big") + kind + content

"""A request's photo and mask, read once and brought to the size of its images."""

from __future__ import annotations

from .images import fit_image, read_image
from .mask import read_mask
from .request import Defaults, Request


def with_pictures(request: Request, defaults: Defaults) -> Request:
    """Return the request, complete, with photo and mask as pictures of its width and height.

    Decodes files; of a request whose pictures have their size already, nothing changes. Raises `ImageError` for a file
    that is not a picture, and `RequestError` as `Defaults.complete` does.
    """
    if request.image is None:
        return defaults.complete(request)
    photo = read_image(request.image)
    request = defaults.complete(request, photo.size)
    width, height, mask = request.width, request.height, request.mask
    assert width is not None
    assert height is not None
    return request.with_values(
        image=fit_image(photo, width, height, request.fit),
        mask=None if mask is None else read_mask(mask, photo, width, height, request.fit),
    )

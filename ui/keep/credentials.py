"""Content credentials: a signed statement inside a file about its origin (C2PA), with the deployer's key."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from .marks import COMPOSITE, TERMS, Mark

CERTIFICATE, KEY, ALGORITHM = "SD_C2PA_CERTIFICATE", "SD_C2PA_KEY", "SD_C2PA_ALGORITHM"
"""The variables that name the files of certificate chain and private key (PEM), and the algorithm of the signature."""
PROGRAM = {"name": "stable-diffusion-live"}
SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}


def with_credentials(content: bytes, media_type: str, mark: Mark) -> bytes:
    """Return the file of a picture or a film with signed content credentials; unchanged unless `CERTIFICATE` is set.

    They state who signs, program, digital source type and, for a composite, the photo's hash. Raises OSError for files
    that can't be read, KeyError without a key, and C2PA's errors for a certificate or a key that it refuses.
    """
    if not os.environ.get(CERTIFICATE):
        return content
    # Installed on demand. The files are read each time, so that a renewed certificate needs no restart.
    import c2pa

    certificate, key = (Path(os.environ[name]).read_bytes() for name in (CERTIFICATE, KEY))
    info = c2pa.C2paSignerInfo(os.environ.get(ALGORITHM, "es256"), certificate, key, None)
    signed = io.BytesIO()
    with c2pa.Context.from_dict(SETTINGS) as context, c2pa.Signer.from_info(info) as signer:
        builder = c2pa.Builder({"claim_generator_info": [PROGRAM]}, context)
        if mark.photo is None:
            builder.set_intent(c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType.TRAINED_ALGORITHMIC_MEDIA)
        else:
            # The photo as the run used it, not the upload, whose own credentials may name an address to fetch.
            builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
            builder.add_ingredient({"relationship": "parentOf"}, "image/png", io.BytesIO(png(mark.photo)))
            builder.add_action(
                {"action": "c2pa.edited", "digitalSourceType": TERMS + COMPOSITE, "softwareAgent": PROGRAM}
            )
        builder.sign(signer, media_type, io.BytesIO(content), signed)
    return signed.getvalue()


def check_credentials() -> None:
    """Sign a small picture. Raises ValueError, naming the variables, if that fails."""
    try:
        with_credentials(png(Image.new("RGB", (8, 8))), "image/png", Mark())
    except ImportError:
        raise ValueError(f"{CERTIFICATE} needs a package that is not here: pip install c2pa-python") from None
    except KeyError:
        raise ValueError(f"{CERTIFICATE} needs {KEY}, the file of its private key") from None
    except Exception as error:  # C2PA's own have no class that is public in all versions
        raise ValueError(f"{CERTIFICATE}, {KEY} and {ALGORITHM} make no content credentials: {error}") from error


def png(image: Image.Image) -> bytes:
    """Return a picture as a PNG file without any text."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

"""The mark of generated media by what a picture was made from, the mark of an upload, and content credentials."""

from __future__ import annotations

import io
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import av
import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import app
from stable_diffusion.request import Defaults, Request
from tests import tiny
from tests.marks import is_marked
from tests.unit.test_film import film
from ui.keep.credentials import ALGORITHM, CERTIFICATE, KEY, check_credentials
from ui.keep.history import FinishedRun
from ui.keep.marks import BLOCK, COMPOSITE, INFO, TERMS, TRAINED, Mark, mark_of, uploaded_source_type
from ui.keep.metadata import FORMAT_OPTIONS, encoded, read_infotext
from ui.runs.catalogue import Catalogue
from ui.runs.models import LoadedModels
from ui.runs.prepare import prepare
from ui.stage import film as film_module
from ui.stage.film import save_film, save_strip

TEXT = "a fox\nSteps: 3, Sampler: DDPM, Seed: 7, Size: 8x8"
PHOTO = Image.new("RGB", (8, 8), "green")
PAINTED, ALL, NOTHING = Image.new("L", (8, 8)), Image.new("L", (8, 8), 255), Image.new("L", (8, 8))
PAINTED.paste(255, (0, 0, 4, 4))


def photo_marked(source_type: str | None) -> Image.Image:
    photo = PHOTO.copy()
    photo.info |= {} if source_type is None else {INFO: source_type}
    return photo


@pytest.mark.parametrize(
    ("mask", "strength", "uploaded", "expected"),
    [
        (None, 0.49, None, COMPOSITE),
        (None, 0.5, None, TRAINED),
        (None, 1.0, None, TRAINED),
        (PAINTED, 1.0, None, COMPOSITE),
        (NOTHING, 1.0, None, COMPOSITE),
        (ALL, 1.0, None, TRAINED),
        (ALL, 0.2, None, COMPOSITE),
        (PAINTED, 0.2, TRAINED, TRAINED),
        (PAINTED, 0.2, COMPOSITE, COMPOSITE),
    ],
)
def test_a_picture_is_a_composite_where_a_real_photo_remains(
    mask: Image.Image | None, strength: float, uploaded: str | None, expected: str
):
    photo = photo_marked(uploaded)
    mark = mark_of(Defaults(8).complete(Request("a fox", image=photo, mask=mask, strength=strength)))
    assert mark == Mark(expected, photo if expected == COMPOSITE else None)
    assert is_marked(encoded(PHOTO, mark=mark), expected)


def test_a_picture_from_words_is_trained_media():
    assert mark_of(Defaults(8).complete(Request("a fox"))) == Mark(TRAINED)


def upload(path: Path, source_type: str, kind: str, *, way: str = "xmp") -> Path:
    """Save a photo that says, in this way, what it was made by; return its path."""
    chunks, packet = PngInfo(), Mark(source_type).xmp
    if way == "compressed":
        chunks.add_itxt("XML:com.adobe.xmp", packet, zip=True)
        PHOTO.save(path, kind, pnginfo=chunks)
    elif way == "element":  # the other form of a property in XMP, and https
        term = (TERMS + source_type).replace("http:", "https:")
        element = f"<Iptc4xmpExt:DigitalSourceType>{term}</Iptc4xmpExt:DigitalSourceType>"
        PHOTO.save(path, kind, xmp=element.encode())
    elif way == "far behind":
        PHOTO.save(path, kind)
        path.write_bytes(path.read_bytes().ljust(BLOCK - 50, b"\0") + packet.encode())
    elif kind == "TIFF":
        PHOTO.save(path, kind, tiffinfo={700: packet.encode()})
    elif kind == "PNG":
        chunks.add_itxt("XML:com.adobe.xmp", packet)
        PHOTO.save(path, kind, pnginfo=chunks)
    else:
        PHOTO.save(path, kind, xmp=packet.encode())
    return path


@pytest.mark.parametrize("source_type", [TRAINED, COMPOSITE])
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *((kind, "xmp") for kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")),
        *(("PNG", "compressed"), ("JPEG", "element"), ("JPEG", "far behind")),
    ],
)
def test_the_mark_of_an_upload_is_read(tmp_path: Path, source_type: str, kind: str, way: str):
    assert uploaded_source_type(upload(tmp_path / "photo", source_type, kind, way=way)) == source_type


def test_a_photo_without_a_mark_has_none(tmp_path: Path):
    chunks = PngInfo()
    chunks.add_text("xmp", "a text of that name")
    PHOTO.save(tmp_path / "photo.png", pnginfo=chunks)
    assert uploaded_source_type(tmp_path / "photo.png") is None


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_mark_of_an_upload_is_kept_in_what_is_drawn_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: str
):
    monkeypatch.setenv("SD_MODELS", str(tiny.save_model(tmp_path / "models" / "small").parent))
    models = LoadedModels(Catalogue(), device="cpu")
    PHOTO.resize((40, 20)).save(tmp_path / "real.png")
    for path, expected in (
        (upload(tmp_path / "made.png", TRAINED, "PNG"), TRAINED),
        (tmp_path / "real.png", COMPOSITE),
    ):
        asked = Request("a fox", image=str(path), strength=0.2, fit=fit, width=32, height=32, model="small")
        once = prepare(models, asked)[1]
        assert mark_of(once).source_type == expected
        assert mark_of(prepare(models, once)[1]).source_type == expected, "on a replica, which gets a picture"


# Content credentials.


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey, days: int = 1) -> bytes:
    """Return a certificate that is valid from a year ago until some days from now: an issuer's own, or a signer's."""
    authority, now = key is issuer, datetime.now(timezone.utc)
    subject, by = (x509.Name.from_rfc4514_string(f"CN={one},O=Test") for one in (name, "authority"))
    usage = {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
    names = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
    public = issuer.public_key()
    builder = (
        x509.CertificateBuilder(by, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=365))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.KeyUsage(**usage, **dict.fromkeys(names, False)), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    if not authority:
        email = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(email, critical=False)
    return builder.sign(issuer, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Turn content credentials on; return the certificate of the authority that vouches for their signer."""
    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    vouched, own = certificate("page", key, root), certificate("authority", root, root)
    (tmp_path / "expired.pem").write_bytes(certificate("page", key, root, days=-1) + own)
    (tmp_path / "chain.pem").write_bytes(vouched + own)
    (tmp_path / "key.pem").write_bytes(pem_of(key))
    (tmp_path / "other.pem").write_bytes(pem_of(root))
    monkeypatch.setenv(CERTIFICATE, str(tmp_path / "chain.pem"))
    monkeypatch.setenv(KEY, str(tmp_path / "key.pem"))
    return own


def reader(content: bytes, media_type: str, authority: bytes) -> c2pa.Reader:
    trust = {"user_anchors": authority.decode(), "trust_config": "1.3.6.1.5.5.7.3.4"}
    return c2pa.Reader(media_type, io.BytesIO(content), context=c2pa.Context.from_dict({"trust": trust}))


def decoded(video: bytes) -> tuple[str, np.ndarray]:
    """Return the comment of an MP4 file, and its last picture."""
    with av.open(io.BytesIO(video)) as file:
        return file.metadata["comment"], [frame.to_ndarray() for frame in file.decode(video=0)][-1]


def saved(folder: Path, kind: str, mark: Mark) -> bytes:
    """Return a picture as a file of that kind, or the film or strip of a run in the folder that drew it."""
    if kind in FORMAT_OPTIONS:
        return encoded(PHOTO, TEXT, kind, mark)
    (folder / "fox.png").write_bytes(encoded(PHOTO, TEXT, mark=mark))
    PHOTO.save(folder / "photo.png")
    (folder / "film.json").write_text(json.dumps(film(3)))
    files = [str(folder / name) for name in ("fox.png", "film.json", "photo.png")]
    save = save_strip if kind == "strip" else save_film
    return Path(save(FinishedRun("i2i", Request("a fox", seed=7), (files[0],), *files[1:]))).read_bytes()


@pytest.mark.parametrize("mark", [Mark(), Mark(COMPOSITE, PHOTO)], ids=["words", "photo"])
@pytest.mark.parametrize("kind", [*FORMAT_OPTIONS, "animation", "strip", "film"])
def test_every_file_is_signed_after_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: bytes, kind: str, mark: Mark
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(film_module, "has_h264", lambda: kind != "animation")
    media_type = {"animation": "image/webp", "strip": "image/png", "film": "video/mp4"}.get(
        kind, f"image/{kind.lower()}"
    )
    signed = saved(tmp_path, kind, mark)
    credentials = reader(signed, media_type, authority)
    assert credentials.get_validation_state() == "Trusted"
    manifest = credentials.get_active_manifest()
    (actions,) = (one["data"]["actions"] for one in manifest["assertions"] if one["label"].startswith("c2pa.actions"))
    assert [one["digitalSourceType"] for one in actions if "digitalSourceType" in one] == [TERMS + mark.source_type]
    ingredients = manifest.get("ingredients", [])
    assert [one["relationship"] for one in ingredients] == ([] if mark.photo is None else ["parentOf"])
    assert "thumbnail" not in json.dumps(manifest)
    assert is_marked(signed, mark.source_type)
    place = signed.index(b"Steps: 3") if b"Steps: 3" in signed else signed.index("Steps: 3".encode("utf-16-be"))
    changed = signed[: place + 8] + b"9" + signed[place + 9 :]
    assert reader(changed, media_type, authority).get_validation_state() == "Invalid"
    # The rest of the file is as it is without them.
    monkeypatch.delenv(CERTIFICATE)
    plain = saved(tmp_path, kind, mark)
    if kind == "film":
        texts, pictures = zip(*map(decoded, (signed, plain)), strict=True)
        assert texts == (TEXT, TEXT)
        assert np.array_equal(*pictures)
        return
    with Image.open(io.BytesIO(signed)) as one, Image.open(io.BytesIO(plain)) as other:
        assert getattr(one, "n_frames", 1) == getattr(other, "n_frames", 1)
        assert np.array_equal(one, other)
    (tmp_path / "fox").write_bytes(signed)
    assert read_infotext(tmp_path / "fox")["seed"] == 7
    assert uploaded_source_type(tmp_path / "fox") == mark.source_type, "a picture that comes back keeps its mark"


def test_without_a_certificate_nothing_is_signed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(CERTIFICATE, raising=False)
    check_credentials()
    with pytest.raises(c2pa.C2paError, match="ManifestNotFound"):
        c2pa.Reader("image/png", io.BytesIO(encoded(PHOTO, TEXT)))


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        (KEY, None, f"{CERTIFICATE} needs {KEY}, the file of its private key"),
        (KEY, "missing.pem", "make no content credentials: .*No such file"),
        (KEY, "other.pem", "make no content credentials: .*signature does not match"),
        (CERTIFICATE, "key.pem", "make no content credentials"),
        (CERTIFICATE, "expired.pem", "make no content credentials: .*not valid at time of signing"),
        (ALGORITHM, "es999", "make no content credentials"),
    ],
)
def test_credentials_that_cannot_be_made_are_told_at_the_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    authority: bytes,
    variable: str,
    value: str | None,
    sentence: str,
):
    check_credentials()
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, str(tmp_path / value) if variable != ALGORITHM else value)
    with pytest.raises(ValueError, match=sentence):
        check_credentials()
    with pytest.raises(SystemExit):
        app.parse_arguments([])
    assert "error: SD_C2PA_CERTIFICATE" in capsys.readouterr().err

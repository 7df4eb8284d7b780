"""Picture files of every depth and form that Pillow reads, against what was written."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

RAMP = np.linspace(0, 65535, 96).astype(np.uint16)[None].repeat(64, 0)


@pytest.fixture
def read(pack):
    return pack("core.picture_file").read_picture


@pytest.mark.parametrize("name, picture", [
    ("grey.png", RAMP), ("grey.tif", RAMP), ("float.tif", (RAMP / 65535).astype(np.float32)),
    ("float255.tif", (RAMP / 257).astype(np.float32)), ("deep.tif", RAMP.astype(np.int32)),
    ("bytes.png", (RAMP / 257).round().astype(np.uint8))])
def test_grey16_pictures(read, pack, tmp_path, name, picture):
    Image.fromarray(picture).save(tmp_path / name)
    found = read(tmp_path / name)
    assert found.shape == (64, 96, 3) and found.dtype == np.float32
    assert np.abs(found[..., 0] - RAMP / 65535).max() <= 0.51 / 255 and np.array_equal(found[..., 0], found[..., 2])
    assert np.array_equal(read(tmp_path / name, grey=True), found[..., 0])
    folder = pack("core.video.source").PictureFolder(tmp_path, "x", 8.0)
    frame = folder.read([0], 64, 96, lambda: None)[0].numpy()
    assert np.abs(frame[0] - (RAMP / 257).round()).max() <= 1


def test_a_float_picture_with_a_bad_pixel(read, tmp_path):
    picture = np.full((8, 8), 0.5, np.float32)
    picture[2, 3], picture[4, 4] = np.nan, np.inf
    Image.fromarray(picture).save(tmp_path / "p.tif")
    found = read(tmp_path / "p.tif", grey=True)
    assert found[2, 3] == 0 and found[4, 4] == 0 and (np.delete(found.ravel(), [19, 36]) == 0.5).all()


@pytest.mark.parametrize("ending", ["png", "webp", "jpg", "tif"])
@pytest.mark.parametrize("tag, turns", [(3, 2), (6, 1), (8, 3)])
def test_turned_as_the_file_says(read, tmp_path, ending, tag, turns):
    upright = np.full((64, 96, 3), 40, np.uint8)
    upright[:16, :24] = 230, 30, 30
    exif = Image.Exif()
    exif[0x112] = tag
    Image.fromarray(np.rot90(upright, turns).copy()).save(tmp_path / f"p.{ending}", exif=exif)
    found = read(tmp_path / f"p.{ending}")
    assert found.shape == (64, 96, 3) and found[8, 8, 0] > 0.8 and found[40, 60, 0] < 0.3


@pytest.mark.parametrize("form", ["RGBA", "LA", "P"])
def test_hidden_colours(read, tmp_path, form):
    """Where a picture is transparent, what lies under it is black and not the colour that its maker never saw."""
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[..., :3] = 0, 255, 0
    picture[4:12, 4:12] = 255, 0, 0, 255
    image = Image.fromarray(picture)
    if form == "P":
        image = image.convert("RGB").quantize(4)
        image.info["transparency"] = image.getpixel((0, 0))
        image.save(tmp_path / "p.png", transparency=image.getpixel((0, 0)))
    else:
        image.convert(form).save(tmp_path / "p.png")
    found = read(tmp_path / "p.png")
    assert not found[0, 0].any() and found[8, 8, 0] > 0.2


@pytest.mark.parametrize("form", ["CMYK", "YCbCr", "1"])
def test_other_forms_of_colour(read, tmp_path, form):
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(form).save(tmp_path / ("p.jpg" if form != "1" else "p.png"))
    assert read(tmp_path / ("p.jpg" if form != "1" else "p.png")).min() > 0.98


def test_a_small_file_of_a_billion_pixels_is_not_unpacked(pack, tmp_path):
    """The header claims 30 000 x 30 000; nothing of it is read."""
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    chunks = b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                      for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(3_751 * 1_000))), (b"IEND", b"")))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(Exception, match="30000 x 30000 pixels|decompression bomb"):
        pack("core.picture_file").read_picture(tmp_path / "bomb.png")
    Image.new("1", (9000, 8000)).save(tmp_path / "large.png")  # below Pillow's own limit
    with pytest.raises(ValueError, match="9000 x 8000 pixels, at most"):
        pack("core.picture_file").read_picture(tmp_path / "large.png")

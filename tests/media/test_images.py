"""Images from disk: what is read, and how each bad file is refused."""

import struct
import sys
import types
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from vlmcompress.errors import MediaError
from vlmcompress.media.images import read_image


@pytest.fixture
def picture():
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :15] = (255, 0, 0)
    pixels[10:, 15:] = (0, 0, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_modes_become_rgb(tmp_path, picture, mode):
    picture.convert(mode).save(tmp_path / "x.png")
    read = read_image(tmp_path / "x.png")
    assert (read.mode, read.size) == ("RGB", (30, 20))
    expected = np.asarray(picture.convert(mode).convert("RGB"), int)
    assert abs(np.asarray(read, int) - expected).max() <= 1


def test_cmyk_becomes_rgb(tmp_path, picture):
    picture.convert("CMYK").save(tmp_path / "x.tif")
    assert read_image(tmp_path / "x.tif").getpixel((2, 2)) == (255, 0, 0)


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((3, 3), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_image(tmp_path / "palette.png").getpixel((3, 3)) == (10, 20, 30)


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert [read_image(tmp_path / "x.png").getpixel((k, 0))[0] for k in range(3)] == [0, 128, 255]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_in_sixteen_are_not_black(tmp_path, bits):
    white = 2**bits - 1
    values = np.array([[0, white // 2, white]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert [read_image(tmp_path / "x.png").getpixel((k, 0))[0] for k in range(3)] in (
        [0, 127, 255],
        [0, 128, 255],
    )


def test_a_dark_picture_takes_the_smallest_depth_that_holds_it(tmp_path):
    Image.fromarray(np.array([[0, 2048]], np.uint16)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").getpixel((1, 0))[0] == round(2048 / 4095 * 255)
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "black.png")
    assert read_image(tmp_path / "black.png").getpixel((1, 0)) == (0, 0, 0)


def deep_png(path, values, alpha=None):
    """A PNG of 16-bit colours, which Pillow cannot write."""
    rows, columns, _ = values.shape
    samples = values if alpha is None else np.dstack([values, alpha])
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    kind = 2 if alpha is None else 6
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", columns, rows, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize("bits", [8, 12, 14, 16])
def test_colours_of_sixteen_bits(tmp_path, bits):
    white = 2**bits - 1
    values = np.array([[[0, 0, 0], [white, white // 2, 0], [0, white, white]]])
    read = np.asarray(read_image(deep_png(tmp_path / "x.png", values)), int)
    expected = [[[0, 0, 0], [255, 127, 0], [0, 255, 255]]]
    assert abs(read - expected).max() <= 1


def test_alpha_of_sixteen_bits_is_no_colour(tmp_path):
    values = np.array([[[4095, 0, 0], [4095, 0, 0]]])
    file = deep_png(tmp_path / "x.png", values, np.array([[65535, 0]]))
    read = read_image(file)
    assert [read.getpixel((k, 0)) for k in range(2)] == [(255, 0, 0), (255, 255, 255)]


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(400)


def test_heic_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.heic").write_bytes(HEIC)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError, match=r"is HEIC, .*: pip install pillow-heif$"):
        read_image(tmp_path / "x.heic")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path, monkeypatch, picture):
    """A stand-in of the same name is put in the place of the package, which is none of ours."""
    (tmp_path / "x.heic").write_bytes(HEIC)
    known = types.SimpleNamespace(HeifImageFile=lambda file: picture.copy())
    monkeypatch.setitem(sys.modules, "pillow_heif", known)
    assert read_image(tmp_path / "x.heic").getpixel((2, 2)) == (255, 0, 0)


def test_real_heic(tmp_path, picture):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(picture.resize((120, 80))).save(tmp_path / "x.heic", quality=95)
    read = read_image(tmp_path / "x.heic")
    assert read.size == (120, 80)
    assert np.abs(np.subtract(read.getpixel((20, 20)), (255, 0, 0))).max() < 12


def test_floats_are_scaled(tmp_path):
    Image.fromarray(np.array([[-1.0, 0.5, 1.0]], np.float32)).save(tmp_path / "x.tif")
    assert [read_image(tmp_path / "x.tif").getpixel((k, 0))[0] for k in range(3)] == [0, 128, 255]


def test_exif_orientation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    picture.save(tmp_path / "x.png", exif=exif)
    read = read_image(tmp_path / "x.png")
    assert read.size == (20, 30)
    assert read.getpixel((15, 5)) == (255, 0, 0)
    assert read.getpixel((5, 25)) == (0, 0, 255)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)


def test_missing(tmp_path):
    with pytest.raises(MediaError, match=r"none\.png' does not exist"):
        read_image(tmp_path / "none.png")


def test_folder(tmp_path):
    with pytest.raises(MediaError, match="is a folder"):
        read_image(tmp_path)


def test_empty(tmp_path):
    (tmp_path / "x.png").touch()
    with pytest.raises(MediaError, match="is an empty file"):
        read_image(tmp_path / "x.png")


def test_no_image(tmp_path):
    (tmp_path / "x.png").write_text("not a picture")
    with pytest.raises(MediaError, match="not an image"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif"])
def test_truncated(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise).save(whole)
    data = whole.read_bytes()
    (tmp_path / f"x.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=rf"x\.{suffix}' is (truncated or damaged|not an image)"):
        read_image(tmp_path / f"x.{suffix}")


def test_too_large_is_refused_from_the_header(tmp_path, monkeypatch):
    Image.new("1", (400, 300)).save(tmp_path / "x.png")
    monkeypatch.setattr(
        "PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("it was decoded")
    )
    with pytest.raises(MediaError, match=r"400x300 = 120000 pixels, the limit is 119999 pixels"):
        read_image(tmp_path / "x.png", max_pixels=119_999)


def test_the_limit_itself_is_allowed(tmp_path):
    Image.new("1", (400, 300)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", max_pixels=120_000).size == (400, 300)


@pytest.mark.parametrize("side", [11_000, 20_000])
def test_default_limit(tmp_path, side):
    """121 million pixels, where Pillow only warns, and 400 million, where it raises."""
    Image.new("1", (side, side)).save(tmp_path / "x.png")
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MediaError, match=r"too large: .*the limit is 100000000 pixels"):
            read_image(tmp_path / "x.png")
    assert before == Image.MAX_IMAGE_PIXELS

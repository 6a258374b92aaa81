"""Images from disk: what is read, and how each bad file is refused."""

import warnings

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

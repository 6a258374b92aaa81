"""The sheets of pictures that posters are drawn from, cut out of openly licensed packages.

    python -m dev.training.small.sheets --emoji NotoColorEmoji.ttf --photos skimage/data \
        --fonts matplotlib/mpl-data/fonts/ttf

Made once; the sheets are committed beside `posters/draw.py` with the licences of their sources, so
that drawing depends on no font or library version.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from vlmcompress.eval.worlds.posters import draw
from vlmcompress.eval.worlds.posters.poster import GLYPHS
from vlmcompress.eval.worlds.scene import PATCH_SIZE

_ICON, _PHOTO = 40, 96
_EMOJI_SIZE = 109  # the only one of the bitmap font
_SIGN = 7
_DETAIL = 8
# In the order of ICONS, PHOTOS and FONTS.
_EMOJI = (
    "🍎 🍌 🥕 🍄 🦀 🦉 🦆 🐱 🦊 🐼 🐷 🐸 🐢 🐝 🦋 🌲 🌵 🌻 🌹 🚗 🚌 🚂 ⛵ 🚀 🚲 🏠 🏰 ☂ ⚽ 🎸 🥁 "
    "🔔 🔑 ⏰ 📕 💡 👑 🎩 ❤ ☁ 🤖 👻 🎁"
)
_PHOTO_FILES = (
    *("chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg"),
    *("brick.png", "grass.png", "gravel.png"),
)
_FONT_FILES = ("DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Bold.ttf")


def _in_a_row(pictures: Sequence[Image.Image], path: Path) -> None:
    side = pictures[0].height
    sheet = Image.new(pictures[0].mode, (side * len(pictures), side))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number * side, 0))
    sheet.save(path, optimize=True)


def _icon(font: ImageFont.FreeTypeFont, emoji: str) -> Image.Image:
    """One emoji, trimmed and padded to a square."""
    drawn = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(drawn).text((10, 15), emoji, font=font, embedded_color=True)
    drawn = drawn.crop(drawn.getbbox())
    side = max(drawn.size)
    square = ImageOps.pad(drawn, (side, side), color=(0, 0, 0, 0))
    return square.resize((_ICON, _ICON), Image.Resampling.LANCZOS)


def _sign(font: ImageFont.FreeTypeFont, sign: str) -> Image.Image:
    """One capital or digit, at most seven pixels high and wide, in the corner of a patch."""
    drawn = Image.new("L", (16 * _DETAIL, 16 * _DETAIL))
    ImageDraw.Draw(drawn).text((2 * _DETAIL, 2 * _DETAIL), sign.upper(), font=font, fill=255)
    drawn = drawn.crop(drawn.getbbox())
    width = max(2, min(_SIGN, round(drawn.width * _SIGN / drawn.height)))
    patch = Image.new("L", (PATCH_SIZE, PATCH_SIZE))
    small = drawn.resize((width, _SIGN), Image.Resampling.BOX)
    patch.paste(small, ((_SIGN - width) // 2, 0))
    return patch


def _photo(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        small = ImageOps.fit(picture.convert("RGB"), (_PHOTO, _PHOTO), Image.Resampling.LANCZOS)
    return small


def main() -> None:
    """Cut the three sheets."""
    parser = argparse.ArgumentParser(description="Cut the sheets that posters are drawn from.")
    for name in ("emoji", "photos", "fonts"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    out = Path(draw.__file__).with_name("data")
    out.mkdir(exist_ok=True)
    emoji = ImageFont.truetype(given.emoji, _EMOJI_SIZE)
    _in_a_row([_icon(emoji, one) for one in _EMOJI.split()], out / "icons.png")
    _in_a_row([_photo(given.photos / name) for name in _PHOTO_FILES], out / "photos.png")
    fonts = [ImageFont.truetype(given.fonts / name, 10 * _DETAIL) for name in _FONT_FILES]
    _in_a_row([_sign(font, sign) for font in fonts for sign in GLYPHS], out / "signs.png")


if __name__ == "__main__":
    main()

"""The overlay shows the patches where the processor put them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from call_reports import report
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from vlmcompress.errors import VLMCompressError
from vlmcompress.media.video import Video
from vlmcompress.report.overlay import draw, survival, visible_box

SQUARE = CLIPImageProcessorPil(
    size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}, do_normalize=False
)


def video(frames=8, width=96, height=96):
    """Every frame in a green of its own."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels[..., 1] = 60 + 20 * np.arange(frames)[:, None, None]
    times = [k / 4 for k in range(frames)]
    return Video(pixels, list(range(frames)), times, frames, 4.0, True, "PyAV")


PROCESSORS = {
    "crop": (SQUARE, (96, 96)),
    "crop smaller than resized": (
        CLIPImageProcessorPil(
            size={"shortest_edge": 120}, crop_size={"height": 96, "width": 64}, do_normalize=False
        ),
        (96, 64),
    ),
    "crop larger than resized": (
        CLIPImageProcessorPil(
            size={"shortest_edge": 60}, crop_size={"height": 96, "width": 96}, do_normalize=False
        ),
        (96, 96),
    ),
    "stretched": (
        CLIPImageProcessorPil(
            size={"height": 96, "width": 64}, do_center_crop=False, do_normalize=False
        ),
        (96, 64),
    ),
    "padded to a square": (
        LlavaImageProcessorPil(
            size={"shortest_edge": 96},
            crop_size={"height": 96, "width": 96},
            do_pad=True,
            do_normalize=False,
        ),
        (96, 96),
    ),
}


@pytest.mark.parametrize("size", [(160, 96), (90, 250), (200, 200), (333, 101)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_box_is_what_the_processor_shows(name, size):
    """Paint a gradient that tells x and y, and read from the pixels what the model sees where."""
    processor, (height, width) = PROCESSORS[name]
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([x, y, np.full_like(x, 200)], -1).astype(np.uint8))
    seen = processor(image, return_tensors="np")["pixel_values"][0] * 255
    assert seen.shape == (3, height, width)
    box = visible_box(size, processor)
    columns = box.left + (np.arange(width) + 0.5) * (box.right - box.left) / width
    rows = box.top + (np.arange(height) + 0.5) * (box.bottom - box.top) / height
    # Near the border the resampling filter reaches beyond the gradient.
    edge = 3 * max(1, columns[1] - columns[0], rows[1] - rows[0])
    inside_x = (columns > edge) & (columns < size[0] - edge)
    inside_y = (rows > edge) & (rows < size[1] - edge)
    picture = seen[:, inside_y][:, :, inside_x]
    assert picture.size > 1000
    expected_x = (columns[inside_x] - 0.5) / (size[0] - 1) * 255
    expected_y = (rows[inside_y] - 0.5) / (size[1] - 1) * 255
    # One pixel of the processor's output is a step of 255 / 96, so 3 levels are about one pixel.
    assert abs(picture[0] - expected_x).max() < 3.5
    assert abs(picture[1] - expected_y[:, None]).max() < 3.5
    assert abs(picture[2] - 200).max() < 3


def test_unknown_processor_shows_everything():
    assert visible_box((50, 40), object()) == (0, 0, 50, 40)
    assert visible_box((50, 40), SimpleNamespace(image_processor=object())) == (0, 0, 50, 40)


def test_survival_counts_layers():
    deep = report(kept=[0, 1, 5], cuts={1: [0, 5], 3: [5]})
    expected = np.zeros((4, 4))
    expected[0, 0], expected[0, 1], expected[1, 1] = 3 / 4, 1 / 4, 1
    assert (survival(deep) == expected).all()


def test_survival_of_merged_tokens_covers_their_members():
    merged = report(kept=[0, 2], cuts={2: [2]}, groups=[[0, 1, 4], [2, 3]])
    expected = np.zeros(16)
    expected[[0, 1, 4]], expected[[2, 3]] = 0.5, 1
    assert (survival(merged).ravel() == expected).all()
    inside = report(kept=[1, 3], cuts={2: [3]}, groups=[[0, 1, 4], [2, 3]])
    assert (survival(inside).ravel() == expected).all(), "a group need not stand at its first"


def cell(page, box, row, column, scale, grid=4):
    """Mean colour of the middle of a patch in the picture."""
    left = (box.left + (box.right - box.left) * (column + 0.5) / grid) * scale
    top = (box.top + (box.bottom - box.top) * (row + 0.5) / grid) * scale
    part = np.asarray(page, float)[int(top) - 8 : int(top) + 8, int(left) - 8 : int(left) + 8]
    return part.mean(axis=(0, 1))


def test_kept_patches_are_clear_and_dropped_ones_dim_on_a_wide_image():
    image = Image.new("RGB", (160, 96), (0, 200, 0))
    kept = [0, 6, 15]
    page = draw([image], [report(kept)], SQUARE)
    assert page.width == 480
    box, scale = visible_box(image.size, SQUARE), 3
    assert box == (32, 0, 128, 96)
    for patch in range(16):
        color = cell(page, box, *divmod(patch, 4), scale)
        if patch in kept:
            assert color == pytest.approx((0, 200, 0), abs=2)
        else:
            assert color.max() < 60
    # Cropped away on both sides: neither the image's colour nor the dimmed one.
    for left in (4, 480 - 40):
        strip = np.asarray(page, float)[20:260, left : left + 36].mean(axis=(0, 1))
        assert abs(strip[1] - strip[0]) < 5


def test_brightness_follows_depth():
    image = Image.new("RGB", (96, 96), (0, 200, 0))
    page = draw([image], [report([0, 1, 5, 6], cuts={1: [0, 5, 6], 3: [5]})], SQUARE)
    box = visible_box(image.size, SQUARE)
    greens = [cell(page, box, *divmod(patch, 4), 5)[1] for patch in (2, 1, 0, 5)]
    assert greens == sorted(greens)
    assert min(np.diff(greens)) > 10


def test_groups_are_outlined_and_anchored():
    image = Image.new("RGB", (96, 96), (0, 0, 0))
    groups = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]]
    merged = report([0, 2, 8], groups=groups)
    pixels = np.asarray(draw([image], [merged], SQUARE), int)
    lit = pixels.sum(axis=2) > 150
    assert lit[60, 240], "line between the first two groups"
    assert not lit[60, 120], "no line inside a group"
    assert lit[240, 60], "line below the first group"
    assert not lit[360, 60], "no line inside the third group"
    assert lit[244, 4], "anchor of the third group"
    assert not lit[364, 4], "member that is no anchor"


def test_several_images_stand_side_by_side():
    images = [Image.new("RGB", (96, 96), color) for color in ("red", "blue")]
    page = draw(images, [report(list(range(16)))] * 2, SQUARE)
    assert page.width > 2 * 480
    assert page.getpixel((30, 30)) == (255, 0, 0)
    assert page.getpixel((page.width - 30, 30)) == (0, 0, 255)


def dark(page, left, top, right):
    """Whether something black is written there, below `top`."""
    return bool((np.asarray(page.convert("L"))[top:, left:right] < 60).any())


def test_the_line_below_a_narrow_picture_is_whole():
    """It is wrapped in a cell that is wider than the picture, and no line reaches the next cell."""
    tall, square = Image.new("RGB", (10, 480), "white"), Image.new("RGB", (96, 96), "white")
    page = draw([tall, square], [report([0])] * 2, SQUARE)
    alone = draw([tall], [report([0])], SQUARE)
    beside = page.width - 12 - 480
    assert alone.width == beside == 180
    assert page.height > 480 + 26
    assert dark(page, 0, 480, beside)
    assert dark(page, 0, 480 + 26, beside), "a second line"
    assert not dark(page, beside - 2, 480, beside + 12)


def test_frames_of_a_narrow_clip_stand_as_far_apart_as_their_lines():
    sheet = draw([video(8, 12, 96)], [report(list(range(64)), grid=(8, 4, 2))], object(), width=400)
    assert sheet.width <= 400
    assert sheet.width > 3 * (40 + 12), "wider than the frames alone"


def test_large_images_are_shrunk():
    page = draw([Image.new("RGB", (4000, 1000))], [report([0])], SQUARE)
    assert page.width == 1600


def test_wrong_input():
    with pytest.raises(VLMCompressError, match="2 images or clips but 1 reports"):
        draw([Image.new("RGB", (9, 9))] * 2, [report([0])], SQUARE)
    tiles = replace(report([0]), parts=[(1, 2, 4), (1, 2, 4)])
    with pytest.raises(VLMCompressError, match="where the 2 parts of an image lie"):
        draw([Image.new("RGB", (9, 9))], [tiles], SQUARE)


def tile(page, step, row, column, side=320):
    """Mean colour of a patch of a square tile in the first row of a sheet."""
    left, top = step * (side + 12) + (column + 0.5) * side / 4, (row + 0.5) * side / 4
    part = np.asarray(page, float)[int(top) - 8 : int(top) + 8, int(left) - 8 : int(left) + 8]
    return part.mean(axis=(0, 1))


def test_a_clip_is_a_sheet_of_its_steps():
    """Four steps of two frames: each tile shows the first of them, kept patches bright."""
    kept = [0, 16 + 5, 16 + 6, 48 + 15]
    page = draw([video()], [report(kept, grid=(4, 4, 4))], object())
    assert page.width == 4 * 320 + 3 * 12
    for step in range(4):
        for patch in range(16):
            color = tile(page, step, *divmod(patch, 4))
            green = 60 + 40 * step
            if 16 * step + patch in kept:
                assert color == pytest.approx((0, green, 0), abs=2)
            else:
                assert color[1] < 0.6 * green


def test_frames_that_a_family_takes_for_images_are_one_sheet_as_well():
    whole = draw([video(4)], [report([1, 16, 17, 40], grid=(4, 4, 4))], object())
    apart = [report([1]), report([0, 1]), report([8]), report([])]
    assert (np.asarray(draw([video(4)], apart, object())) == np.asarray(whole)).all()


def test_groups_across_steps_have_one_anchor():
    merged = report([0], groups=[[0, 16]], grid=(2, 4, 4))
    pixels = np.asarray(draw([video()], [merged], object()), int)
    assert pixels[4, 4].tolist() == [80, 220, 255]
    assert not (pixels[:, 332:] == (80, 220, 255)).all(axis=2).any()
    assert tile(pixels, 1, 0, 0)[1] > 2 * tile(pixels, 1, 0, 1)[1], "the member is bright as well"


def test_many_steps_wrap_into_rows_of_smaller_tiles():
    small = draw([video(20)], [report(list(range(20 * 16)), grid=(20, 4, 4))], object())
    assert small.width == 7 * 200 + 6 * 12
    assert small.height == 3 * (200 + 26) + 26
    assert small.getpixel((100, 2 * 226 + 100))[1] == (60 + 20 * 14) % 256


def test_an_image_and_a_clip_stand_side_by_side():
    """Images are cropped by this processor, clips are not."""
    page = draw(
        [Image.new("RGB", (96, 96), "red"), video(8, 160, 96)],
        [report(list(range(16))), report(list(range(64)), grid=(4, 4, 4))],
        SimpleNamespace(image_processor=SQUARE, video_processor=object()),
    )
    assert page.width == 480 + 12 + 4 * 320 + 3 * 12
    assert page.getpixel((30, 30)) == (255, 0, 0)
    assert page.getpixel((480 + 12 + 3 * 332 + 20, 100)) == (0, 180, 0)


def test_a_clip_that_is_cropped_shows_its_patches_where_they_are():
    page = draw([video(8, 160, 96)], [report([48], grid=(4, 4, 4))], SQUARE)
    # The last tile; tiles are 320 wide and the crop starts 32 * 2 pixels from the left.
    picture = np.asarray(page, float)[:, 3 * 332 :]
    assert picture[20, 64 + 20, 1] == pytest.approx(180, abs=2)
    assert picture[20, 40, 1] < 120

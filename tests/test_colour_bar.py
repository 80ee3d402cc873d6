import numpy as np

from dpa_jax.scoring import colour_bar

PICTURE = np.full((60, 200, 3), 7, np.uint8)
COLOURS = np.stack([np.arange(256)] * 3, 1).astype(np.uint8)


def test_bar_lies_below_the_picture_from_low_to_high():
    found = colour_bar.add(PICTURE, COLOURS, 0.1, 0.9, "what they are")
    assert found.dtype == np.uint8 and found.shape[1] == 200 and len(found) > 80
    np.testing.assert_array_equal(found[:60], PICTURE)
    bar = found[67, :, 0].astype(int)  # 10 pixels high, 5 below the picture
    assert bar[0] == 0 and bar[-1] == 255 and (np.diff(bar) >= 0).all()


def test_numbers_and_caption_are_written_below():
    def below(low, high, caption):
        return colour_bar.add(PICTURE, COLOURS, low, high, caption)[75:]

    one = below(0.1, 0.9, "a")
    assert (one < 128).any()
    for other in (below(0.2, 0.9, "a"), below(0.1, 0.8, "a"), below(0.1, 0.9, "b")):
        assert (one != other).any()


def test_long_captions_fit():
    found = colour_bar.add(PICTURE, COLOURS, 0.1, 0.9, "word " * 14)
    assert (found[90:] < 255).any()
    assert (found[90:, [0, -1]] == 255).all()

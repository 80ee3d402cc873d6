"""The bar below a picture that says what its colours mean."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def add(
    picture: np.ndarray, colours: np.ndarray, low: float, high: float, caption: str
) -> np.ndarray:
    """Puts a bar of colours with numbers and a caption below a picture.

    Args:
      picture: uint8 `[H, W, 3]`.
      colours: uint8 `[N, 3]`, of values from `low` to `high`.
      low: the number at the left end.
      high: the number at the right end.
      caption: what they are.

    Returns:
      uint8 `[H + h, W, 3]`.
    """
    height, width = picture.shape[:2]
    text = max(10, width // 80)
    font = small = ImageFont.load_default(text)
    for size in range(text, 1, -1):
        small = ImageFont.load_default(size)
        if small.getlength(caption) <= width - 4:
            break
    result = Image.new("RGB", (width, height + 9 * text // 2), "white")
    result.paste(Image.fromarray(picture))
    shown = colours[np.linspace(0, len(colours) - 1, width).astype(int)]
    bar = np.ascontiguousarray(shown[None].repeat(text, 0))
    result.paste(Image.fromarray(bar), (0, height + text // 2))
    draw = ImageDraw.Draw(result)
    top = height + 7 * text // 4
    draw.text((2, top), f"{low:.4g}", "black", font)
    draw.text((width - 2, top), f"{high:.4g}", "black", font, anchor="ra")
    draw.text((width / 2, top + 5 * text // 4), caption, "black", small, anchor="ma")
    return np.asarray(result)

"""Pictures for the pages, as PNG files with a palette: small, and nothing that is seen is lost."""

import io

import numpy as np

from tinygrok.engine.errors import InputError

WIDTH = 1050  # pixels; the pages show 700 of them
MOST = 256  # colours of a palette
BYTES = 110_000
ERRORS = (6, 8, 10, 12, 16, 20, 24)  # levels of 255: the first is not seen


def small_png(source) -> tuple[bytes, int]:
    """(a PNG file at most WIDTH wide, its number of colours) of a picture file.

    No channel of a pixel is off by more than the first of the ERRORS with which it has at most MOST
    colours and BYTES. Raises InputError without Pillow, and for a file that is no picture or cannot
    be made so small."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("pictures need Pillow: pip install 'tinygrok[plot]'") from None
    try:
        image = Image.open(source).convert("RGB")
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no picture ({error})") from error
    if image.width > WIDTH:
        height = round(image.height * WIDTH / image.width)
        image = image.resize((WIDTH, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image).reshape(-1, 3)
    for error in ERRORS:
        palette, indices = reduced(pixels, error)
        if len(palette) > MOST:
            continue
        places = indices.astype(np.uint8).reshape(image.height, image.width)
        drawn = Image.fromarray(places)
        drawn.putpalette(palette.tobytes())
        data = io.BytesIO()
        drawn.save(data, "png", optimize=True)
        if data.tell() <= BYTES:
            return data.getvalue(), len(palette)
    raise InputError(f"{source}: {MOST} colours and {BYTES} bytes do not show what is in it")


def reduced(pixels: np.ndarray, error: int) -> tuple[np.ndarray, np.ndarray]:
    """(palette (n, 3), the number in it of every pixel (B,)) of colours (B, 3) of 8 bits.

    Commonest first, a colour joins the palette unless one that is there is within the error in
    every channel; so flat areas stay as they are, and thin lines keep their colours. Where more
    than MOST would join, it ends with one more."""
    red, green, blue = pixels.astype(int).T
    codes, which, counts = np.unique(
        red << 16 | green << 8 | blue, return_inverse=True, return_counts=True
    )
    found = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    off = np.full(len(found), 256)  # levels to the nearest of the palette
    nearest = np.zeros(len(found), dtype=int)
    palette: list[np.ndarray] = []
    for k in np.argsort(-counts, kind="stable"):
        if off[k] > error and len(palette) <= MOST:
            distance = np.abs(found - found[k]).max(axis=1)
            nearest[distance < off] = len(palette)
            off = np.minimum(off, distance)
            palette.append(found[k])
    return np.array(palette, dtype=np.uint8), nearest[which]

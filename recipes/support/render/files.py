"""Films as files: GIF by Pillow, MP4 by imageio-ffmpeg, PNG as a strip."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image
from support.render.films import Film, beside, filled_up

from qmix_trl.errors import SaveError

PALETTE_FRAMES = 12  # from which the colours of a GIF are chosen
STRIP_FRAMES = 5  # of each episode
GIF_COLORS = 256


def write_film(film: Film, path: Path) -> None:
    """Write a film to a file, as the suffix says: .gif, .mp4 or .png.

    A file that was there before is replaced when the new one is whole.

    Raises:
        SaveError: if it cannot be written.
    """
    with whole(path) as part:
        WRITERS[path.suffix.lower()](film, part)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the path of a file that takes the place of another at the end of a ``with`` block.

    Raises:
        SaveError: if it cannot be written.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise SaveError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_gif(film: Film, path: Path) -> None:
    """Write a GIF that repeats; all frames have the same colours."""
    colors = palette(film)

    def frames() -> Iterator[Image.Image]:
        for i in range(1, len(film)):
            yield in_colors(film.frame(i), colors)

    in_colors(film.frame(0), colors).save(
        path,
        save_all=True,
        append_images=frames(),
        duration=[round(1000 * seconds) for seconds in film.seconds],
        loop=0,
    )


def palette(film: Film) -> Image.Image:
    """Return an image with the most frequent colours of a film; its areas keep their colours."""
    frames = [film.frame(i)[::2, ::2] for i in spread(len(film), PALETTE_FRAMES)]
    pixels = np.concatenate(frames).reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1])
    packed, counts = np.unique(pixels, return_counts=True)
    chosen: dict[tuple[int, ...], tuple[int, ...]] = {}
    for color in packed[np.argsort(-counts, kind="stable")].tolist():
        channels = tuple(color >> shift & 255 for shift in (16, 8, 0))
        # Pillow finds the nearest colour by six bits of each channel: closer ones it confuses.
        chosen.setdefault(tuple(channel >> 3 for channel in channels), channels)
    image = Image.new("P", (1, 1))
    image.putpalette([channel for color in list(chosen.values())[:GIF_COLORS] for channel in color])
    return image


def in_colors(frame: np.ndarray, colors: Image.Image) -> Image.Image:
    """Return a frame in the colours of another image."""
    return Image.fromarray(frame).quantize(palette=colors, dither=Image.Dither.NONE)


def write_mp4(film: Film, path: Path) -> None:
    """Write an MP4 (H.264), whose frames have the shortest time in the film.

    Raises:
        OSError: if the encoder fails.
    """
    import imageio_ffmpeg

    tick = min(film.seconds)
    height, width = (size + size % 2 for size in film.frame(0).shape[:2])  # the format wants even
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a process that is still there
        writer = imageio_ffmpeg.write_frames(
            str(path), (width, height), fps=1 / tick, macro_block_size=2, ffmpeg_log_level="error"
        )
        writer.send(None)
        for i, seconds in enumerate(film.seconds):
            frame = filled_up(film.frame(i), height, width)
            for _ in range(round(seconds / tick)):
                writer.send(frame)
        writer.close()


def write_png(film: Film, path: Path) -> None:
    """Write a picture with a row for each episode: its frames from the start to the end."""
    rows = []
    for numbers in film.episodes:
        moments = [numbers[i] for i in spread(len(numbers), STRIP_FRAMES)]
        rows.append(beside([film.frame(i) for i in moments]))
    width = max(row.shape[1] for row in rows)
    Image.fromarray(np.concatenate([filled_up(r, len(r), width) for r in rows])).save(path)


def spread(n: int, most: int) -> list[int]:
    """Return at most ``most`` numbers from 0 to n - 1, evenly spread, with both ends."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most)).tolist()})


WRITERS: dict[str, Callable[[Film, Path], None]] = {
    ".gif": write_gif,
    ".mp4": write_mp4,
    ".png": write_png,
}

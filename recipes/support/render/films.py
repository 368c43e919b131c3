"""Films: the frames of episodes, of one run or of several side by side, with a line of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from support.render.canvas import Canvas
from support.render.episodes import Episode
from support.render.scenes import Scene, Window, around_all

from qmix_trl.errors import DivergedError

HEAD = 46  # pixels above a picture, for two lines of text
SIZES = (14, 13)  # of their letters
INK, PAPER = (0, 0, 0), (255, 255, 255)
LEFT = 6  # pixels before a line
GAP = 8  # pixels between pictures that stand side by side
END_SECONDS = 1.0  # for which the last frame of an episode stays longer


@dataclass(frozen=True)
class Part:
    """The episodes of one run.

    Attributes:
        title: the upper line.
        episodes: at least one.
    """

    title: str
    episodes: Sequence[Episode]


class Film:
    """The frames of several runs side by side; the film of an episode lasts as its longest one.

    All frames have one size, and all scenes one window, which holds everything that must be seen.

    Args:
        parts: runs with the same number of episodes.
        step_seconds: the time of a step.

    Raises:
        DivergedError: if a place in a scene is not finite.

    Attributes:
        seconds: the time of each frame.
        episodes: the numbers of each episode's frames.
    """

    def __init__(self, parts: Sequence[Part], step_seconds: float) -> None:
        self._parts = parts
        moments = [m for part in parts for episode in part.episodes for m in episode]
        windows = [m.drawing.window for m in moments if isinstance(m.drawing, Scene)]
        self._canvas = Canvas(finite(around_all(windows))) if windows else None
        n_episodes = len(parts[0].episodes)
        lengths = [max(len(part.episodes[i]) for part in parts) for i in range(n_episodes)]
        self._places = [(i, t) for i, length in enumerate(lengths) for t in range(length)]
        self.seconds = [
            step_seconds + (END_SECONDS if t == lengths[i] - 1 else 0) for i, t in self._places
        ]
        ends = np.cumsum([0, *lengths]).tolist()
        self.episodes = [range(a, b) for a, b in pairwise(ends)]

    def __len__(self) -> int:
        return len(self._places)

    def frame(self, number: int) -> np.ndarray:
        """Return a frame, uint8 [H, W, 3]."""
        episode, step = self._places[number]
        return beside([self._frame_of(part, episode, step) for part in self._parts])

    def _frame_of(self, part: Part, number: int, step: int) -> np.ndarray:
        """Return the frame of a run; of an episode that is over, its last one."""
        episode = part.episodes[number]
        moment = episode[min(step, len(episode) - 1)]
        n_episodes = len(part.episodes)
        of = f"episode {number + 1} of {n_episodes}, " if n_episodes > 1 else ""
        state = f"{of}step {moment.step}, return {moment.total:.2f}"
        return headed(self._picture(moment.drawing), part.title, state)

    def _picture(self, drawing: Scene | np.ndarray) -> np.ndarray:
        if isinstance(drawing, np.ndarray):
            return drawing
        assert self._canvas is not None  # there is one if any drawing is a scene
        return self._canvas.picture(drawing)


def finite(window: Window) -> Window:
    """Return a window.

    Raises:
        DivergedError: if it has no end.
    """
    if not np.isfinite([window.width, window.height]).all():
        raise DivergedError("a place in the world is nan or infinite, and cannot be drawn")
    return window


def headed(picture: np.ndarray, *lines: str) -> np.ndarray:
    """Return a picture [H, W, 3] with two lines of text above it; a line too long is cut."""
    width = picture.shape[1]
    head = Image.new("RGB", (width, HEAD), PAPER)
    draw = ImageDraw.Draw(head)
    for i, (line, size) in enumerate(zip(lines, SIZES, strict=True)):
        while line and draw.textlength(line, font(size)) > width - LEFT:
            line = line[:-2].rstrip(" …") + "…" if len(line) > 2 else ""
        draw.text((LEFT, 4 + i * HEAD // 2), line, INK, font(size))
    return np.concatenate([np.asarray(head), picture])


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font in a size of pixels."""
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), size)


def beside(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Return frames side by side, uint8 [H, W, 3], filled up with white."""
    height = max(len(frame) for frame in frames)
    padded = [filled_up(frame, height, frame.shape[1]) for frame in frames]
    gap = np.full((height, GAP, 3), PAPER, np.uint8)
    joined = [part for frame in padded for part in (gap, frame)]
    return np.concatenate(joined[1:], 1)


def filled_up(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a frame [H, W, 3] of a size that is larger, with white below and at the right."""
    filled = np.full((height, width, 3), PAPER, np.uint8)
    filled[: frame.shape[0], : frame.shape[1]] = frame
    return filled

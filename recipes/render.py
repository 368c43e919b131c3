"""Draw episodes of a trained run: python recipes/render.py runs/NAME [runs/OTHER] [--out FILE.gif]

The episodes are the first of those that evaluation plays. It needs no display. Several runs are
drawn side by side. It prints the returns and the file.
"""

from collections.abc import Sequence
from pathlib import Path

from support.run_arguments import film_title, render_arguments

if __name__ == "__main__":
    arguments = render_arguments(__doc__)  # before torch is imported: mistakes are told at once

import torch
from support.commands import typed
from support.render.files import write_film
from support.render.films import Film, Part
from support.render.recording import Recorder
from support.run_folder import CONFIG_FILE
from support.sources import with_sources
from support.threads import set_threads

from qmix_trl import load_config, load_weights
from qmix_trl.errors import exit_on_mistake
from qmix_trl.logs import say
from qmix_trl.trained import build_agent


def render(
    folders: Sequence[Path],
    *,
    episodes: int,
    policy: str,
    weights: str,
    out: Path,
    renderer: str,
) -> list[list[float]]:
    """Write a film of episodes; return their returns, a list for each run.

    Args:
        folders: of the runs.
        episodes: their number.
        policy: "greedy", "random" or "no_op".
        weights: of the greedy policy: "last" or "best".
        out: the file: .gif, .mp4 or .png.
        renderer: "agg", or "vmas" for VMAS's own by OpenGL.

    Raises:
        ConfigError: if a folder is no run's, or its environment cannot be made.
        CheckpointError: if the weights are damaged.
        DivergedError: if a place in the world is not finite.
        MachineError: if an environment cannot be drawn here.
        SaveError: if the file cannot be written.
    """
    recorded = [record(folder, episodes, policy, weights, renderer) for folder in folders]
    parts = [part for part, _ in recorded]
    write_film(Film(parts, max(seconds for _, seconds in recorded)), out)
    return [[episode[-1].total for episode in part.episodes] for part in parts]


def record(
    folder: Path, episodes: int, policy: str, weights: str, renderer: str
) -> tuple[Part, float]:
    """Return the drawn episodes of a run, and the seconds of a step.

    Args:
        folder: of the run.
        episodes: as for ``render``.
        policy: as for ``render``.
        weights: as for ``render``.
        renderer: as for ``render``.
    """
    config = with_sources(load_config(folder / CONFIG_FILE), folder)
    set_threads(config.runtime.threads)
    device = torch.device("cpu")
    recorder = Recorder(config, device, renderer)
    evaluation = recorder.evaluation
    if policy == "greedy":
        agent = build_agent(config, evaluation.dims, device)
        load_weights(folder, agent, weights=weights)
        env, acting = evaluation.with_greedy(agent)
    else:
        env, acting = evaluation.env, evaluation.baseline_policies()[policy]
    drawn = recorder.record(env, acting, episodes)
    return Part(
        f"{folder.name}: {film_title(policy, weights)}", drawn
    ), recorder.painter.step_seconds


if __name__ == "__main__":
    with exit_on_mistake():
        for folder, returns in zip(arguments.folders, render(**vars(arguments)), strict=True):
            say(f"{folder}: return {', '.join(f'{total:.2f}' for total in returns)}")
        say(f"{arguments.out}: {arguments.out.stat().st_size / 1000:,.0f} kB")
        say(f"next: {typed('plot', *arguments.folders)}")

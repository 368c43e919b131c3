"""Drawings of runs: known places have known colours; files have as many frames as steps."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import render
import torch
from PIL import Image
from recipe_tools import RECIPES, call, check_told, game, metrics, run
from support import run_arguments
from support.evaluation import Evaluation
from support.render import films, own_pictures
from support.render.canvas import AREA, DPI, MARGIN, Canvas
from support.render.episodes import Moment, played
from support.render.files import write_film
from support.render.films import END_SECONDS, GAP, HEAD, Film, Part
from support.render.grids import LOADING, PLAYER, FieldPainter
from support.render.recording import Recorder
from support.render.scenes import BLACK, Label, Polygon, Scene, Window, box
from support.render.scenes import Path as Line
from support.render.tables import TAKEN, TablePainter, choices, payoffs
from support.render.videos import Videos
from support.render.vmas_viewer import shapes_of, without_opengl
from support.render.worlds import LENGTH, OpenGLPainter, WorldPainter
from team_tools import AnyEnv, Layout
from torchrl.envs import SerialEnv
from vmas_tools import make_env

from qmix_trl import ConfigError, MachineError, episode_returns, load_config, save_weights
from qmix_trl import make_env as make_env_of
from qmix_trl.checkpoint.streams import random_state, set_random_state
from qmix_trl.envs.team import TeamEnv
from qmix_trl.errors import DivergedError
from qmix_trl.policy import NoOpPolicy

RED, WHITE = (1.0, 0.0, 0.0, 1.0), (255, 255, 255)
SQUARE = Window(0, 1, 0, 1)
PIXELS = round(AREA**0.5 * DPI)  # of a side of a square picture


def pixel(picture, x, y, window=SQUARE):
    """Return the colour at a place of a square window."""
    side = (1 + 2 * MARGIN) * window.width
    left, top = window.left - MARGIN * window.width, window.top + MARGIN * window.height
    column, row = int((x - left) / side * PIXELS), int((top - y) / side * PIXELS)
    return tuple(picture[row, column].tolist())


def as_bytes(color):
    """Return a colour as it is on white paper, in bytes."""
    *channels, alpha = color
    return tuple(255 * (alpha * c + 1 - alpha) for c in channels)


def close(color, expected):
    """Return whether two colours are equal to rounding."""
    return all(abs(a - b) <= 2 for a, b in zip(color, expected, strict=True))


# Pictures of scenes


def test_a_shape_colours_its_own_pixels():
    scene = Scene([Polygon(box(0.25, 0.5, 0.5, 0.25), RED)], SQUARE)
    picture = Canvas(SQUARE).picture(scene)
    assert picture.shape == (PIXELS, PIXELS, 3)
    for x, y, color in (
        (0.3, 0.55, (255, 0, 0)),
        (0.7, 0.7, (255, 0, 0)),
        (0.2, 0.6, WHITE),
        (0.5, 0.45, WHITE),
        (0.5, 0.8, WHITE),
    ):
        assert pixel(picture, x, y) == color


def test_later_shapes_cover_earlier_ones_and_a_picture_does_not_keep_the_last_one():
    canvas = Canvas(SQUARE)
    below, above = Polygon(box(0, 0, 1, 1), RED), Polygon(box(0, 0, 0.5, 1), (0, 0, 1.0, 1))
    line = Line(np.array([(0.75, 0.0), (0.75, 1.0)]), BLACK, 6)
    both = canvas.picture(Scene([below, Label("a", (0.1, 0.1)), above, line], SQUARE))
    assert [pixel(both, x, 0.5) for x in (0.25, 0.6, 0.75)] == [
        (0, 0, 255),
        (255, 0, 0),
        (0, 0, 0),
    ]
    assert pixel(canvas.picture(Scene([below], SQUARE)), 0.25, 0.5) == (255, 0, 0)


@pytest.mark.parametrize(("width", "aspect"), [(3, 2.0), (1.5, 1.5), (0.1, 0.5)])
def test_a_picture_has_the_window_s_shape_within_limits_and_a_constant_area(width, aspect):
    window = Window(0, width, 0, 1)
    height_px, width_px, _ = Canvas(window).picture(Scene([], window)).shape
    assert width_px / height_px == pytest.approx(aspect, rel=0.01)
    assert width_px * height_px == pytest.approx(PIXELS**2, rel=0.01)


# VMAS's geometry


def test_the_transforms_of_vmas_move_the_points_of_its_geometry():
    with without_opengl():
        from vmas.simulator import rendering

        bar = rendering.make_polygon([(0, 0), (2, 0), (2, 1), (0, 1)])
        bar.set_color(1, 0, 0, 0.5)
        turned = rendering.Transform(translation=(3, 1), rotation=math.pi / 2, scale=(1, 2))
        bar.add_attr(turned)
        text = rendering.TextLine("hello", x=70, y=350)
    (drawn,) = shapes_of(bar, SQUARE, (700, 700))
    # (x, y) -> (3 - 2 y, 1 + x): scaled by (1, 2), turned by a quarter to the left, moved.
    np.testing.assert_allclose(drawn.points, [(3, 1), (3, 3), (1, 3), (1, 1)], atol=1e-6)
    assert drawn.color == (1, 0, 0, 0.5)
    assert drawn.edge == (0.5, 0, 0, 0.25)
    (label,) = shapes_of(text, Window(-1, 1, -1, 1), (700, 700))
    assert (label.text, label.place) == ("hello", (-0.8, 0.0))


def test_vmas_and_pyglet_are_as_before_behind_a_drawing():
    import sys

    import vmas.simulator

    env = make_env("balance")
    env.reset()
    names = ("pyglet", "pyglet.gl", "vmas.simulator.rendering")
    before = {name: sys.modules.get(name) for name in names}
    kept = vmas.simulator.__dict__.get("rendering")
    WorldPainter(env).draw(0, None)
    assert {name: sys.modules.get(name) for name in names} == before
    assert vmas.simulator.__dict__.get("rendering") is kept


# Worlds of VMAS


def test_entities_of_a_world_colour_the_pixels_at_their_places():
    env = make_env("balance")
    env.reset()
    scene = WorldPainter(env).draw(1, None)
    window = Window(-1.44, 1.44, -1.44, 1.44)
    picture = Canvas(window).picture(Scene(scene.shapes, window))
    world = env.simulator.world
    for entity in (env.simulator.scenario.package, *env.simulator.agents):
        alpha = getattr(entity, "_alpha", 1.0)
        x, y = entity.state.pos[1].tolist()
        color = pixel(picture, x, y + entity.shape.radius / 2, window)
        assert close(color, as_bytes((*entity.color, alpha))), entity.name
    floor = env.simulator.scenario.floor
    assert close(pixel(picture, 0, -1.4, window), as_bytes((*floor.color, 1.0)))
    labels = {s.text: s.place for s in scene.shapes if isinstance(s, Label)}
    assert [*labels] == [str(i) for i in range(len(world.policy_agents))]
    assert labels["2"][0] == pytest.approx(world.policy_agents[2].state.pos[1, 0].item())


def test_an_arrow_shows_the_force_of_an_agent():
    env = make_env("balance")
    shown = env.reset()
    action = torch.zeros(2, 4, dtype=torch.int64)[:, : env.n_agents]
    action[0, 1] = 6  # of 3 x 3 forces: the whole force to the right, none upwards
    painter = WorldPainter(env)
    n_before = len(painter.draw(0, None).shapes)
    env.step(shown.set(("agents", "action"), action))
    scene = painter.draw(0, action[0].tolist())
    agent = env.simulator.agents[1]
    assert agent.state.force[0, 0] > 0 == agent.state.force[0, 1]
    assert len(scene.shapes) == n_before + 2  # the arrow's line and its head
    (head,) = [s for s in scene.shapes if isinstance(s, Polygon) and s.color == BLACK]
    x, y = agent.state.pos[0].tolist()
    assert head.points[0].tolist() == pytest.approx([x + LENGTH * agent.shape.radius, y])


def test_a_window_holds_what_has_moved_far_away():
    env = make_env("balance")
    env.reset()
    env.simulator.scenario.package.set_pos(torch.tensor([5.0, 0.0]), batch_index=0)
    window = WorldPainter(env).draw(0, None).window
    assert window.right == pytest.approx(5 + env.simulator.scenario.package.shape.radius)
    assert window.left >= -2


def test_the_rays_of_lidars_reach_as_far_as_they_measure():
    env = make_env("navigation")
    env.reset()
    shapes = WorldPainter(env).draw(0, None).shapes
    rays = [s.points for s in shapes if isinstance(s, Line)]
    lengths = [np.linalg.norm(end - start) for start, end in rays]
    lidars = [agent.sensors[0] for agent in env.simulator.agents]
    measured = torch.cat([lidar._last_measurement[0] for lidar in lidars])
    assert len(measured) == 4 * 12  # agents x rays
    np.testing.assert_allclose(lengths, measured, rtol=1e-5)


def test_a_failing_extra_render_is_left_out_and_told_once(capsys):
    env = make_env("give_way")
    env.reset()

    def failing(env_index):
        raise KeyError("pitch")

    env.simulator.scenario.extra_render = failing
    painter = WorldPainter(env)
    n_shapes = [len(painter.draw(0, None).shapes) for _ in range(2)]
    assert n_shapes[0] == n_shapes[1] > 0
    said = capsys.readouterr().out
    assert said == "drawn without give_way's extra_render, which fails: KeyError 'pitch'\n"


@pytest.mark.parametrize("is_drawn", [True, False])
def test_a_drawing_that_draws_random_numbers_changes_no_episode(is_drawn):
    env = make_env("balance", seed=3)
    env.simulator.scenario.extra_render = lambda env_index: [torch.rand(1)][1:]
    painter = WorldPainter(env)
    torch.manual_seed(0)
    starts = []
    for _ in range(2):
        starts.append(env.reset()["agents", "observation"])
        if is_drawn:
            painter.draw(0, None)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))
    other = make_env("balance", seed=3)
    assert all(torch.equal(start, other.reset()["agents", "observation"]) for start in starts)


def test_vmas_s_own_renderer_is_used_or_told_in_one_line(monkeypatch):
    env = make_env("balance")
    env.reset()
    picture = np.zeros((7, 7, 3), np.uint8)
    monkeypatch.setattr(env.simulator, "render", lambda mode, env_index: picture + env_index)
    assert (OpenGLPainter(env).draw(1, None) == 1).all()

    def no_display(mode, env_index):
        raise RuntimeError("no display")

    monkeypatch.setattr(env.simulator, "render", no_display)
    with pytest.raises(MachineError, match=r"--renderer vmas: expected OpenGL.*no display"):
        OpenGLPainter(env).draw(0, None)


# Games and fields


def test_the_table_of_a_game_frames_the_joint_action():
    reward = torch.tensor([[0.0, 4.0], [-4.0, 8.0]])
    mask = torch.tensor([[True, True], [True, False]])
    scene = payoffs(reward, mask, [1, 0], "state 3")
    texts = [s.text for s in scene.shapes if isinstance(s, Label)]
    assert texts == ["0", "4", "-4", "8", "u1=0", "u1=1", "u2=0", "u2=1", "state 3"]
    window = Window(0, 2, -2, 0)
    picture = Canvas(window).picture(Scene(scene.shapes, window))
    # Cell (u1, u2) lies at x from u2 to u2 + 1, y from -u1 - 1 to -u1; its frame is 0.08 wide.
    frame = [close(pixel(picture, x, -1.5, window), as_bytes(TAKEN)) for x in (0.04, 0.96, 1.04)]
    assert frame == [True, True, False]
    assert close(pixel(picture, 0.2, -0.2, window), WHITE)  # nothing is paid
    assert close(pixel(picture, 1.2, -0.2, window), as_bytes((0.75, 0.75, 0.75, 1)))  # masked
    red = pixel(picture, 0.2, -1.2, window)  # -4 of at most 8: half of the way from white to red
    assert close(red, as_bytes((0.9, 0.65, 0.625, 1)))


def test_agents_of_other_numbers_have_a_row_of_actions_each():
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    scene = choices(mask, [1, 0, 1], "state 0")
    window = Window(0, 3, -3, 0)
    picture = Canvas(window).picture(Scene(scene.shapes, window))
    taken = [
        [close(pixel(picture, a + 0.04, -i - 0.5, window), as_bytes(TAKEN)) for a in range(2)]
        for i in range(3)
    ]
    assert taken == [[False, True], [True, False], [False, True]]


def test_a_game_is_drawn_in_the_state_in_which_the_action_was_taken():
    env = make_env_of("games", scenario="two_step", n_envs=2, max_steps=4, state="world", seed=0)
    drawings = []

    class Painter(TablePainter):
        def draw(self, e, action):
            scene = super().draw(e, action)
            drawings.append((action, [s.text for s in scene.shapes if isinstance(s, Label)][-1]))
            return scene

    played(env, NoOpPolicy(2), Painter(env), n_episodes=1, max_steps=4, seed=0)
    # Action 0 of the first agent leads to state 1, which pays and ends.
    assert drawings == [(None, "state 0"), ([0, 0], "state 0"), ([0, 0], "state 1")]


def test_a_field_shows_players_foods_and_who_loads():
    env = make_env_of(
        "foraging", scenario="6x6-2p-2f", n_envs=2, max_steps=9, state="world", seed=0
    )
    env.reset()
    scene = FieldPainter(env).draw(1, [5, 0])
    window = Window(0, 6, -6, 0)
    picture = Canvas(window).picture(Scene(scene.shapes, window))
    (*foods, first, second) = env.units[1].tolist()
    places = {}
    for name, (row, column, _) in {"first": first, "second": second}.items():
        x, y = column + 0.5, -row - 0.5
        places[name] = [pixel(picture, x + d, y, window) for d in (0.25, 0.4)]
    assert close(places["first"][0], as_bytes(PLAYER))
    assert close(places["first"][1], as_bytes(LOADING))  # a ring from 0.35 to 0.45
    assert close(places["second"][0], as_bytes(PLAYER))
    assert close(places["second"][1], WHITE)
    levels = [f"{level:.0f}" for *_, level in (*foods, first, second)]
    assert [s.text for s in scene.shapes if isinstance(s, Label)] == [
        *levels[:2],
        levels[2],
        "0",
        levels[3],
        "1",
    ]


# Environments that draw themselves


def test_the_picture_of_another_package_is_magnified_and_checked():
    env = make_env_of("games", scenario="two_step", n_envs=1, max_steps=4, state="world", seed=0)
    small = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    env.render = lambda e: small
    picture = own_pictures.PicturePainter(env).draw(0, None)
    assert picture.shape == (200, 300, 3)
    assert picture[199, 299].tolist() == small[1, 2, :3].tolist()
    env.render = lambda e: None
    with pytest.raises(MachineError, match=r"expected a picture, uint8 \[H, W, 3\].*got object"):
        own_pictures.PicturePainter(env).draw(0, None)
    env.render = lambda e: 1 / 0
    with pytest.raises(MachineError, match="tables cannot be drawn: ZeroDivisionError"):
        own_pictures.PicturePainter(env).draw(0, None)


def test_environments_of_pettingzoo_draw_themselves():
    pytest.importorskip("mpe2", reason="needs the extra envs")
    config = load_config(
        RECIPES / "configs" / "pettingzoo_spread_qmix.yaml",
        ["env.n_envs=2", "env.max_steps=2", "collection.steps=2", "evaluation.episodes=2"],
    )
    recorder = Recorder(config, torch.device("cpu"))
    evaluation = recorder.evaluation
    episodes = recorder.record(evaluation.env, evaluation.baseline_policies()["random"], 2)
    pictures = [step.drawing for episode in episodes for step in episode]
    assert len(pictures) == 2 * 3
    assert {(picture.shape, picture.dtype.name) for picture in pictures} == {
        ((700, 700, 3), "uint8")
    }
    assert (pictures[0] != pictures[2]).any()  # forces move agents from the second step on
    assert (pictures[0] != pictures[3]).any()


def test_an_environment_of_one_s_own_is_drawn_by_its_method_render():
    class Drawn(AnyEnv):
        """Shows the number of its episode."""

        def render(self):
            return np.full((400, 1, 3), int(self.episode), np.uint8)

    env = TeamEnv(SerialEnv(2, lambda: Drawn(Layout(n_envs=None))))
    env.reset()
    env.env._envs[1].reset()  # in its second episode, the number 1
    painter = own_pictures.PicturePainter(env)
    assert [int(painter.draw(e, None)[0, 0, 0]) for e in range(2)] == [0, 1]


# Films and files


def moment(step, color=RED):
    """Return a step whose picture grows with it."""
    return Moment(Scene([Polygon(box(0, 0, 0.1 * step, 1), color)], SQUARE), step, float(step))


def film(*lengths, n_runs=1):
    """Return a film of runs whose episodes have these numbers of frames."""
    episodes = [[moment(step) for step in range(length)] for length in lengths]
    return Film([Part("a run", episodes)] * n_runs, 0.1)


def test_runs_side_by_side_have_twice_the_width():
    one, two = film(2).frame(1), film(2, n_runs=2).frame(1)
    height, width, _ = one.shape
    assert (height, width) == (HEAD + PIXELS, PIXELS)
    assert two.shape == (height, 2 * width + GAP, 3)
    assert (two[:, :width] == one).all()
    assert (two[:, width + GAP :] == one).all()


def test_an_episode_that_is_over_stays_as_it_is_beside_a_longer_one():
    short, long = [[moment(0), moment(1)]], [[moment(step) for step in range(4)]]
    both = Film([Part("short", short), Part("long", long)], 0.1)
    assert len(both) == 4
    assert (both.frame(3)[:, :PIXELS] == both.frame(1)[:, :PIXELS]).all()
    assert (both.frame(3)[:, -PIXELS:] != both.frame(1)[:, -PIXELS:]).any()


def test_the_text_above_a_picture_is_cut_to_its_width():
    picture = np.zeros((5, 60, 3), np.uint8)
    headed = films.headed(picture, "a" * 90, "step 1")
    assert headed.shape == (HEAD + 5, 60, 3)
    assert (headed[:, -1] == 255)[:HEAD].all()
    assert (headed[:HEAD] < 128).any()


def test_a_place_that_is_not_a_number_is_told():
    far = Moment(Scene([], Window(0, math.inf, 0, 1)), 0, 0.0)
    with pytest.raises(DivergedError, match="nan or infinite"):
        Film([Part("a run", [[far]])], 0.1)


def test_a_gif_has_the_frames_the_times_and_the_colours_of_its_film(tmp_path):
    write_film(film(4, 3), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 7
        end = round(1000 * (0.1 + END_SECONDS))
        durations = []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
        assert durations == [100, 100, 100, end, 100, 100, end]
        gif.seek(3)
        frame = np.asarray(gif.convert("RGB"))
    assert pixel(frame[HEAD:], 0.15, 0.5) == (255, 0, 0)
    assert pixel(frame[HEAD:], 0.5, 0.5) == WHITE
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_an_mp4_has_a_frame_for_each_tick(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")
    write_film(film(3), tmp_path / "a.mp4")
    frames = ffmpeg.read_frames(tmp_path / "a.mp4")
    about = next(frames)
    assert about["size"] == (PIXELS, HEAD + PIXELS)
    assert about["fps"] == 10
    # Two frames of 0.1 s, and the last one for a second more.
    assert len(list(frames)) == 2 + 11


def test_a_png_has_a_row_of_moments_for_each_episode(tmp_path):
    write_film(film(9, 2), tmp_path / "a.png")
    strip = np.asarray(Image.open(tmp_path / "a.png"))
    assert strip.shape == (2 * (HEAD + PIXELS), 5 * PIXELS + 4 * GAP, 3)
    for i, step in enumerate((0, 2, 4, 6, 8)):  # of the first row; it grows by a tenth a step
        shown = strip[HEAD : HEAD + PIXELS, i * (PIXELS + GAP) :][:, :PIXELS]
        red = [pixel(shown, x, 0.5) == (255, 0, 0) for x in (0.1, 0.3, 0.5, 0.7)]
        assert sum(red) == step / 2


def test_a_file_that_cannot_be_written_is_one_error_and_leaves_the_one_before(tmp_path):
    path = tmp_path / "a.gif"
    path.write_text("before")
    (tmp_path / ".a.part.gif").mkdir()
    with pytest.raises(MachineError, match=r"a\.gif: cannot be written: Is a directory"):
        write_film(film(1), path)
    assert path.read_text() == "before"


# Runs


@pytest.fixture(scope="module")
def two_step(tmp_path_factory):
    """Return the folder of a run on the two-step game."""
    return run(tmp_path_factory.mktemp("two_step"), game("two_step"), "evaluation.episodes=3")


@pytest.fixture(scope="module")
def balance(tmp_path_factory):
    """Return the folder of a run on balance, with recurrent agents, by VMAS itself."""
    return run(tmp_path_factory.mktemp("balance"), "evaluation.episodes=3")


@pytest.mark.parametrize("policy", ["greedy", "random", "no_op"])
@pytest.mark.parametrize("task", ["balance", "two_step"])
def test_the_episodes_are_those_of_the_evaluation(task, policy, tmp_path, request):
    folder = request.getfixturevalue(task)
    out = tmp_path / "a.png"
    (returns,) = render.render(
        [folder], episodes=2, policy=policy, weights="last", out=out, renderer="agg"
    )
    config = load_config(folder / "config.yaml")
    evaluation = Evaluation(config, torch.device("cpu"))
    env, acting = evaluation.env, evaluation.baseline_policies().get(policy)
    if policy == "greedy":
        agent = render.build_agent(config, evaluation.dims, torch.device("cpu"))
        render.load_weights(folder, agent)
        env, acting = evaluation.with_greedy(agent)
    expected = episode_returns(
        env, acting, max_steps=config.env.max_steps, seed=evaluation.seeds[0]
    )
    assert returns == pytest.approx(expected[:2].tolist(), abs=1e-4)
    assert out.exists()


def test_the_command_prints_the_returns_and_the_file(balance, two_step, capsys):
    call("render.py", str(balance), str(two_step), "--episodes", "1")
    first, second, third, following = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{balance}: return ")
    assert second.startswith(f"{two_step}: return ")
    file = balance / "videos" / f"greedy-{two_step.name}.gif"
    assert third == f"{file}: {file.stat().st_size / 1000:,.0f} kB"
    assert following.endswith(f"plot.py {balance} {two_step}")
    with Image.open(file) as gif:
        assert gif.n_frames == 5  # the start and 4 steps


def test_the_best_weights_are_drawn_where_they_are_asked_for(balance):
    config = load_config(balance / "config.yaml")
    evaluation = Evaluation(config, torch.device("cpu"))
    agent = render.build_agent(config, evaluation.dims, torch.device("cpu"))
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter)
    save_weights(balance, agent, None, weights="best", dims=evaluation.dims, greedy_return=9.0)
    returns = {}
    for weights in ("last", "best"):
        part, _ = render.record(balance, 2, "greedy", weights, "agg")
        returns[weights] = [episode[-1].total for episode in part.episodes]
    env, acting = evaluation.with_greedy(agent)
    best = episode_returns(env, acting, max_steps=config.env.max_steps, seed=evaluation.seeds[0])
    assert returns["best"] == pytest.approx(best[:2].tolist(), abs=1e-4)
    assert returns["last"] != returns["best"]
    assert run_arguments.film_title("greedy", "best") == "greedy-best"
    assert run_arguments.film_title("random", "best") == "random"


MISTAKES = {
    "suffix": (["--out", "a.jpg"], ["--out", ".gif, .mp4, .png", "a.jpg"]),
    "no folder": (["--out", "nowhere/a.gif"], ["--out", "nowhere/a.gif"]),
    "no episodes": (["--episodes", "0"], ["--episodes", "1 to 3", "got 0"]),
    "too many episodes": (["--episodes", "4"], ["--episodes", "1 to 3", "got 4"]),
    "renderer": (["--renderer", "vmas"], ["--renderer vmas", "games"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_without_torch(mistake, two_step, monkeypatch, capsys):
    arguments, parts = MISTAKES[mistake]
    monkeypatch.setattr("sys.argv", ["render.py", str(two_step), *arguments])
    with pytest.raises(SystemExit) as caught:
        run_arguments.render_arguments(None)
    check_told(caught.value.code, capsys.readouterr().err, 2, parts)


def test_a_missing_package_is_told_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr("qmix_trl.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--out: .*imageio_ffmpeg.*'qmix-trl\[video\]'"):
        run_arguments.film_path("a.mp4", [], "greedy")
    with pytest.raises(ConfigError, match=r"render\.py: .*matplotlib.*'qmix-trl\[recipes\]'"):
        run_arguments.check_drawn([], 1, "agg")


# Videos of a training


def test_videos_change_no_number_and_are_kept_by_a_resumed_run(tmp_path):
    often = ("evaluation.every_frames=8", "checkpoint.every_seconds=0")
    plain = run(tmp_path / "plain", *often)
    folder = run(tmp_path / "drawn", *often, "evaluation.video=true")
    assert metrics(folder) == metrics(plain)
    names = [f"frames-{frames:012d}.gif" for frames in (8, 16)]
    assert sorted(path.name for path in (folder / "videos").iterdir()) == names
    with Image.open(folder / "videos" / names[0]) as gif:
        assert gif.n_frames == 5
    run(tmp_path / "drawn", "collection.total_frames=24", resume=folder)
    names.append("frames-000000000024.gif")
    assert sorted(path.name for path in (folder / "videos").iterdir()) == names


def test_a_video_leaves_the_random_streams_of_the_process(two_step, tmp_path, monkeypatch):
    def numbers():
        of_numpy = np.random.rand()  # noqa: NPY002 - the global stream
        return torch.rand(1).item(), of_numpy, random.random()

    def draw(painter, e, action, draw=TablePainter.draw):
        numbers()
        return draw(painter, e, action)

    monkeypatch.setattr(TablePainter, "draw", draw)
    config = load_config(two_step / "config.yaml", ["evaluation.video=true"])
    agent = render.build_agent(
        config, Evaluation(config, torch.device("cpu")).dims, torch.device("cpu")
    )
    before = random_state()
    expected = numbers()
    set_random_state(before)
    Videos(config, tmp_path, torch.device("cpu")).write(8, agent)
    assert (tmp_path / "videos" / "frames-000000000008.gif").exists()
    assert numbers() == expected


@pytest.mark.parametrize("where", ["make", "write"])
def test_a_video_that_fails_is_told_once_and_ends_no_run(where, tmp_path, monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise MachineError("no room")

    names = {"make": "recording.Recorder", "write": "files.write_film"}
    monkeypatch.setattr(f"support.render.{names[where]}", fails)
    folder = run(tmp_path, game("two_step"), "evaluation.every_frames=8", "evaluation.video=true")
    assert capsys.readouterr().out.count("no more videos: no room\n") == 1
    assert (folder / "summary.json").exists()
    assert not Path(folder / "videos").exists()


def test_videos_without_the_packages_are_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("qmix_trl.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"evaluation\.video: .*matplotlib"):
        run(tmp_path, "evaluation.video=true")

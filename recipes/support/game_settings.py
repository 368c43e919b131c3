"""The settings of ``games.py``: overrides of ``configs/two_step_qmix.yaml``.

Where no table of a kind fits the payoffs, the draws of uniform actions are noise: many frames and
large batches keep it small.
"""

ONE_STEP = (
    "env.max_steps=1",
    "collection.steps=1",
    "update.per_batch=4",
    "update.optimizer.lr=0.2",
)
GAMES = {
    "two_step": (),
    "matrix_8": (
        *ONE_STEP,
        "env.scenario=matrix",
        "env.scenario_kwargs={payoff: [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]]}",
        "env.n_envs=24000",
        "collection.total_frames=600000",
        "replay.capacity_rows=600000",
        "replay.batch_rows=24000",
        "update.per_batch=6",
    ),
    "matrix_12": (
        *ONE_STEP,
        "env.scenario=matrix",
        "env.scenario_kwargs={payoff: [[12, -0.1, -0.1], [-0.1, 0, 0], [-0.1, 0, 0]]}",
        "env.n_envs=6000",
        "collection.total_frames=150000",
        "replay.capacity_rows=150000",
        "replay.batch_rows=6000",
    ),
    "random_matrix": (
        *ONE_STEP,
        "env.scenario=random_matrix",
        "env.scenario_kwargs={n_games: 60}",
        "env.n_envs=3000",
        "collection.total_frames=120000",
        "replay.capacity_rows=120000",
        "replay.batch_rows=3000",
        "evaluation.episodes=120",
    ),
}
MIXERS = {"vdn": ("mixer={name: vdn}",), "qmix": (), "iql": ("mixer={name: none}",)}

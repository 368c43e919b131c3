"""The robotic warehouse of the package rware as a team under the canonical contract."""

from functools import partial

from qmix_trl.envs import gymnasium_team

RWARE = gymnasium_team.Package(
    name="rware", example="rware-tiny-2ag-v2", limit="max_steps", no_limit=None
)
make_env = partial(gymnasium_team.make_env, RWARE)

"""Environments under one contract (``contract.py``), by family.

A family is imported when its first environment is made, so that games need no VMAS.
"""

from importlib import import_module

from torchrl.envs import EnvBase

from qmix_trl.envs.contract import EnvDims, env_dims
from qmix_trl.errors import ConfigError, nearest

# family: module with its make_env
ENVS = {
    "vmas": "qmix_trl.envs.vmas",
    "games": "qmix_trl.envs.games",
    "foraging": "qmix_trl.envs.foraging",
    "custom": "qmix_trl.envs.custom",
    "pettingzoo": "qmix_trl.envs.pettingzoo",
    "lbforaging": "qmix_trl.envs.lbforaging",
    "rware": "qmix_trl.envs.rware",
}


def make_env(family: str, **settings) -> EnvBase:
    """Return an environment of a family: ``make_env("vmas", scenario="balance", ...)``.

    Args:
        family: a name in ``ENVS``.
        **settings: the keywords of that family's own ``make_env``.

    Returns:
        an environment under the contract; its attribute ``how`` (``Chosen``) names the
        implementation that steps it.

    Raises:
        ConfigError: if the family is unknown, or its ``make_env`` refuses the settings.
        ImportError: if the family's package is not installed.
    """
    if family not in ENVS:
        raise ConfigError(
            f"env.family: unknown family {family!r}{nearest(family, ENVS)}; "
            f"known: {', '.join(ENVS)}"
        )
    return import_module(ENVS[family]).make_env(**settings)


__all__ = ["ENVS", "EnvDims", "env_dims", "make_env"]

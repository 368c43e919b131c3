"""The scenarios of VMAS: their names, keywords and groups of agents."""

import ast
import inspect

import torch
import vmas
from vmas.scenarios import load
from vmas.simulator.scenario import BaseScenario

from qmix_trl.errors import ConfigError, nearest

SCENARIOS = sorted([*vmas.scenarios, *vmas.debug_scenarios, *vmas.mpe_scenarios])


def load_scenario(name: str) -> BaseScenario:
    """Return a new scenario by its name.

    Raises:
        ConfigError: if VMAS has no scenario of that name.
    """
    if name not in SCENARIOS:
        raise ConfigError(
            f"env.scenario: unknown VMAS scenario {name!r}{nearest(name, SCENARIOS)}; "
            "`python recipes/names.py scenarios` lists them"
        )
    return load(f"{name}.py").Scenario()


def scenario_keywords(scenario: BaseScenario) -> list[str]:
    """Return the keywords that a scenario takes, sorted.

    VMAS does not list them: they are read off calls of ``kwargs.pop`` and ``kwargs.get`` in the
    scenario's source.
    """
    found = set()
    for cls in type(scenario).__mro__:
        if not issubclass(cls, BaseScenario) or cls is BaseScenario:
            continue
        tree = ast.parse("".join(inspect.findsource(cls.make_world)[0]))
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="kwargs"), attr="pop" | "get"),
                    args=[ast.Constant(value=str(keyword)), *_],
                ):
                    found.add(keyword)
    return sorted(found)


def agent_groups(agent_names: list[str]) -> dict[str, list[int]]:
    """Return the indices of agents by group, as TorchRL groups them.

    An agent "adversary_0" belongs to the group "adversary". If any name has no such number, all
    agents form one group "agents"; so does a single group "agent".
    """
    groups: dict[str, list[int]] = {}
    for i, agent_name in enumerate(agent_names):
        prefix, _, number = agent_name.rpartition("_")
        if not (prefix and number.isdigit()):
            return {"agents": list(range(len(agent_names)))}
        groups.setdefault(prefix, []).append(i)
    return {"agents": groups["agent"]} if list(groups) == ["agent"] else groups


def first_group(name: str) -> str | None:
    """Return the first group of a scenario's agents, None if there is only one group."""
    world = load_scenario(name).env_make_world(1, torch.device("cpu"))
    groups = agent_groups([agent.name for agent in world.policy_agents])
    return next(iter(groups)) if len(groups) > 1 else None

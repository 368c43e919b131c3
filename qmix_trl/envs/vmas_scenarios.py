"""The scenarios of VMAS: by name, with their keywords and their groups of agents."""

import ast
import inspect

import torch
import vmas
from vmas.scenarios import load
from vmas.simulator.scenario import BaseScenario

from qmix_trl.errors import ConfigError, nearest

SCENARIOS = sorted([*vmas.scenarios, *vmas.debug_scenarios, *vmas.mpe_scenarios])


def load_scenario(name: str) -> BaseScenario:
    """Return a new scenario of that name.

    Raises:
        ConfigError: if VMAS has none.
    """
    if name not in SCENARIOS:
        raise ConfigError(
            f"env.scenario: unknown VMAS scenario {name!r}{nearest(name, SCENARIOS)}; "
            "`python recipes/names.py scenarios` lists them"
        )
    return load(f"{name}.py").Scenario()


def scenario_keywords(scenario: BaseScenario) -> list[str]:
    """Return the keywords that a scenario's source reads by ``kwargs.pop`` or ``kwargs.get``."""
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
    """Return the indices of agents by group: "adversary_0" is of group "adversary" (as in TorchRL).

    Agents that are not all named so are one group, "agents", and so is a single group "agent".
    """
    groups: dict[str, list[int]] = {}
    for i, agent_name in enumerate(agent_names):
        prefix, _, number = agent_name.rpartition("_")
        if not (prefix and number.isdigit()):
            return {"agents": list(range(len(agent_names)))}
        groups.setdefault(prefix, []).append(i)
    return {"agents": groups["agent"]} if list(groups) == ["agent"] else groups


def first_group(name: str) -> str | None:
    """Return the first of a scenario's groups of agents, None if there is only one."""
    world = load_scenario(name).env_make_world(1, torch.device("cpu"))
    groups = agent_groups([agent.name for agent in world.policy_agents])
    return next(iter(groups)) if len(groups) > 1 else None

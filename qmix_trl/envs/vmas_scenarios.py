"""The scenarios of VMAS and of users: their names, instances, keywords and groups of agents."""

import ast
import inspect
import os
import random
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

import numpy as np
import torch
import vmas
from vmas.scenarios import load
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.user_code import (
    failing_line,
    line_of_definition,
    load_module,
    own_line,
    split_name,
)
from qmix_trl.errors import ConfigError, nearest, one_line, shown

SCENARIOS = sorted([*vmas.scenarios, *vmas.debug_scenarios, *vmas.mpe_scenarios])
VMAS_FOLDER = Path(vmas.__file__).parent
# The parameters of VMAS's environment: it takes these keywords itself.
OF_ENVIRONMENT = frozenset(inspect.signature(Environment.__init__).parameters) - {"kwargs"}
ALL = "all"  # as a group: all agents that act by a policy


def load_scenario(name: str) -> BaseScenario:
    """Return a new scenario by its name.

    Raises:
        ConfigError: if VMAS has no scenario of that name.
    """
    if name not in SCENARIOS:
        raise ConfigError(
            f"env.scenario: unknown VMAS scenario {name!r}{nearest(name, SCENARIOS)}; "
            "`qmix-trl names scenarios` lists them; one of your own is path/to/file.py or "
            "module:Class"
        )
    return load(f"{name}.py").Scenario()


def is_own(name: str) -> bool:
    """Return whether a name is a file or a module of the user's, not a scenario of VMAS."""
    return name.endswith(".py") or ":" in name


def own_class(spec: str) -> type[BaseScenario]:
    """Return a class of the user's.

    Args:
        spec: "path/to/file.py", whose only scenario it is; "path/to/file.py:Class"; or
            "module:Class".

    Raises:
        ConfigError: if there is no such class, or the file has several, or fails.
    """
    where, name = split_name(spec)
    if where.endswith(".py") and not os.path.isfile(where):  # also of a name too long for a file
        raise ConfigError(f"env.scenario: expected a file, got {shown(where)!r}; there is none")
    try:
        module = load_module(where)
    except Exception as error:  # the user's code may raise anything
        is_absent = isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(
            f"{error.name}."
        )
        hint = "; install it, or name its folder in PYTHONPATH" if is_absent else ""
        line = "" if is_absent else f" at {failing_line(error, where)}"
        raise ConfigError(f"env.scenario: {spec}: {one_line(error)}{line}{hint}") from error
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseScenario) and value is not BaseScenario
    }
    if name:
        if name not in classes:
            raise ConfigError(
                f"env.scenario: {spec}: expected a subclass of BaseScenario, got none of that name"
                f"{nearest(name, classes)}; {Path(where).name} has: {', '.join(classes) or 'none'}"
            )
        return classes[name]
    own = {value for value in classes.values() if value.__module__ == module.__name__}
    leaves = [cls for cls in own if not any(cls in other.__mro__[1:] for other in own)]
    if len(leaves) != 1:
        found = sorted(cls.__name__ for cls in leaves)
        hint = f"; name one, e.g. {spec}:{found[0]}" if found else ""
        raise ConfigError(
            f"env.scenario: {spec}: expected one subclass of BaseScenario, got "
            f"{', '.join(found) or 'none'}{hint}"
        )
    return leaves[0]


def scenario_of(given: str | BaseScenario | type[BaseScenario]) -> BaseScenario:
    """Return a scenario by its name, a new instance of a class, or the instance itself.

    Raises:
        ConfigError: if there is no scenario of that name, the class cannot be instantiated, or
            ``given`` is something else.
    """
    if isinstance(given, str):
        return instance_of(own_class(given)) if is_own(given) else load_scenario(given)
    if isinstance(given, BaseScenario):
        return given
    if isinstance(given, type) and issubclass(given, BaseScenario):
        return instance_of(given)
    raise ConfigError(
        "env.scenario: expected a name, or a class or an instance of BaseScenario, got "
        f"{getattr(given, '__name__', type(given).__name__)!r}"
    )


def instance_of(cls: type[BaseScenario]) -> BaseScenario:
    """Return a new instance of a scenario's class; all its instances draw the same numbers.

    Raises:
        ConfigError: if the class cannot be instantiated without arguments.
    """
    with generators_restored():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - a scenario may draw from it
        random.seed(0)
        try:
            return cls()
        except Exception as error:  # a scenario's code may raise anything
            at = own_line(error, cls.__module__) or line_of_definition(cls)
            raise ConfigError(
                f"env.scenario: {cls.__name__}() fails: {one_line(error)} at {at}; it is called "
                "without arguments; make_env also takes an instance"
            ) from error


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the generators of torch, NumPy and Python after a ``with`` block."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def scenario_keywords(scenario: BaseScenario) -> list[str] | None:
    """Return the keywords that a scenario takes, sorted; None if its source leaves them open.

    VMAS does not list them: they are read off the source of ``make_world``.
    """
    found: set[str] = set()
    for cls in type(scenario).__mro__:
        if "make_world" not in vars(cls) or cls is BaseScenario:
            continue
        make_world = inspect.unwrap(vars(cls)["make_world"])
        if not isinstance(make_world, FunctionType):
            return None
        if Path(make_world.__code__.co_filename).is_relative_to(VMAS_FOLDER):
            found |= _keywords_of_file(make_world)
            continue
        keywords = _keywords_of(make_world)
        if keywords is None:
            return None
        found |= keywords.names
        if not keywords.go_on:
            break
    return sorted(found)


def boolean_keywords(scenario: BaseScenario) -> set[str]:
    """Return the keywords that a scenario's file reads with a default of true or false."""
    found: set[str] = set()
    for cls in type(scenario).__mro__:
        make_world = inspect.unwrap(vars(cls).get("make_world", BaseScenario.make_world))
        try:
            tree = ast.parse("".join(inspect.findsource(make_world)[0]))
        except (OSError, TypeError, SyntaxError):
            continue  # a class of a REPL has no source
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="pop" | "get"),
                    args=[ast.Constant(value=str(keyword)), ast.Constant(value=bool())],
                ):
                    found.add(keyword)
    return found


def _keywords_of_file(make_world: FunctionType) -> set[str]:
    """Return the keywords that the file of one of VMAS's scenarios reads anywhere."""
    tree = ast.parse("".join(inspect.findsource(make_world)[0]))
    reads = (_read_keyword(node, "kwargs") for node in ast.walk(tree))
    return {read[1] for read in reads if read is not None}


@dataclass(frozen=True)
class _Keywords:
    """The keywords that one ``make_world`` takes, and whether it passes others to its base's."""

    names: set[str]
    go_on: bool


def _keywords_of(make_world: FunctionType) -> _Keywords | None:
    """Return the keywords of a ``make_world``; None if it may read others, or has no source."""
    parameters = list(inspect.signature(make_world).parameters.values())
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][3:]  # self, size, device
    names = {p.name for p in named} | {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    rest = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
    if not rest:
        return _Keywords(names, go_on=False)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(make_world)))
    except (OSError, TypeError, SyntaxError):
        return None
    seen, go_on = set(), False
    for node in ast.walk(tree):
        read = _read_keyword(node, rest[0])
        if read is not None:
            seen.add(read[0])
            names.add(read[1])
        else:
            passed = _passed_on(node, rest[0])
            seen |= passed
            go_on |= bool(passed) and node.func.attr == "make_world"
    uses = {node for node in ast.walk(tree) if _is_name(node, rest[0])}
    return None if uses - seen else _Keywords(names, go_on)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _read_keyword(node: ast.AST, kwargs: str) -> tuple[ast.AST, str] | None:
    """Return the use of a dictionary and the keyword, if a node reads one keyword of it."""
    match node:
        case ast.Call(
            func=ast.Attribute(value=use, attr="pop" | "get" | "setdefault"),
            args=[ast.Constant(value=str(keyword)), *_],
        ):
            pass
        case ast.Subscript(value=use, slice=ast.Constant(value=str(keyword))):
            pass
        case ast.Compare(
            left=ast.Constant(value=str(keyword)), ops=[ast.In() | ast.NotIn()], comparators=[use]
        ):
            pass
        case _:
            return None
    return (use, keyword) if _is_name(use, kwargs) else None


def _passed_on(node: ast.AST, kwargs: str) -> set[ast.AST]:
    """Return the uses of a dictionary in a call of the base's ``make_world``, or of VMAS's check
    that all keywords were read."""
    match node:
        case ast.Call(
            func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="make_world"),
            keywords=keywords,
        ):
            return {k.value for k in keywords if k.arg is None and _is_name(k.value, kwargs)}
        case ast.Call(func=ast.Attribute(attr="check_kwargs_consumed"), args=[use, *_]):
            return {use} if _is_name(use, kwargs) else set()
    return set()


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
    """Return the first group of a scenario's agents, None if there is only one group.

    Raises:
        ConfigError: if there is no scenario of that name, or its code fails.
    """
    scenario = scenario_of(name)
    try:
        world = scenario.env_make_world(1, torch.device("cpu"))
    except Exception as error:  # the user's code may raise anything
        line = failing_line(error, type(scenario).__module__)
        raise ConfigError(f"VMAS scenario {name!r} fails: {one_line(error)} at {line}") from error
    groups = agent_groups([agent.name for agent in world.policy_agents])
    return next(iter(groups)) if len(groups) > 1 else None

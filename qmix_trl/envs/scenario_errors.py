"""Errors of a scenario's code, each told in one line that names its place."""

import linecache
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.compiled.trace.own_code import is_own_module, packages_of
from qmix_trl.envs.user_code import frames_of, line_at, line_of_definition
from qmix_trl.errors import ConfigError, Refused, is_out_of_memory, one_line

CALLED = re.compile(r"scenario\.(observation|reward|done|info)\(")  # in a line of VMAS


@contextmanager
def errors_told(
    scenario: BaseScenario, *, name: str, kwargs: Mapping[str, Any], n_envs: int
) -> Iterator[None]:
    """Turn any error of a scenario's code within a ``with`` block into one line.

    Args:
        scenario: of the class whose code runs.
        name: of the scenario.
        kwargs: its keywords.
        n_envs: E.

    Raises:
        ConfigError: if the code raises anything but a lack of memory.
    """
    try:
        yield
    except (ConfigError, Refused):
        raise
    except Exception as error:  # a scenario's code may raise anything
        if is_out_of_memory(error):
            raise
        given = f"env.scenario_kwargs: {dict(kwargs)}: " if kwargs else ""
        raise ConfigError(
            f"{given}VMAS scenario {name!r} fails in a batch of {n_envs}: {one_line(error)} at "
            f"{_failing_line(error, scenario)}"
        ) from error


def _failing_line(error: Exception, scenario: BaseScenario) -> str:
    """Return file, number and text of the line of the scenario's code that raised an error.

    If there is none, the line of VMAS that raised it, the agent that it was about, and the
    scenario's method whose result it read.
    """
    packages, frames = packages_of(scenario), frames_of(error)
    own = [at for at in frames if is_own_module(at[0].f_globals.get("__name__", ""), packages)]
    if own:
        return line_at(*own[-1])
    agents = [frame.f_locals["agent"].name for frame, _ in frames if "agent" in frame.f_locals]
    about = f" for {agents[-1]}" if agents else ""
    lines = [_three_lines(frame.f_code.co_filename, number) for frame, number in frames]
    called = CALLED.findall(" ".join(lines))
    return f"{line_at(*frames[-1])}{about}{defined_at(scenario, called[-1]) if called else ''}"


def _three_lines(file: str, number: int) -> str:
    """Return the text of three lines, on which a call may be spread."""
    return "".join(linecache.getline(file, number + i) for i in range(3))


def defined_at(scenario: BaseScenario, method: str) -> str:
    """Return where a scenario's method is defined, as the end of a message."""
    return f"; {method} is defined at {line_of_definition(getattr(type(scenario), method))}"

"""What the printers of a step share: operators, and the order in which all is printed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from qmix_trl.envs.compiled.codegen.schedule import Guard, scheduled
from qmix_trl.envs.compiled.lower.expressions import BOOL, INT, Expression, Scalar
from qmix_trl.envs.compiled.lower.step import Step

# Of operations that are written alike in C++ and in Triton; {0} and so on are the arguments.
OPERATORS = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "neg": "(-{0})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "and": "({0} & {1})",
    "or": "({0} | {1})",
    "isnan": "({0} != {0})",
    "floor_divide": "floor_divide({0}, {1})",
    **{op: f"v{op}({{0}})" for op in ("exp", "log", "sin", "cos", "tan", "tanh")},
    **{op: f"v{op}({{0}}, {{1}})" for op in ("atan2", "logaddexp")},
}


@dataclass(frozen=True)
class Forms:
    """How a language writes operations.

    Attributes:
        common: by operation.
        floats: by operation, where the result is no whole number.
        whole: by operation, where it is.
        casts: by the types from which and to which.
    """

    common: Mapping[str, str]
    floats: Mapping[str, str]
    whole: Mapping[str, str]
    casts: Mapping[tuple[str, str], str]

    def of(self, x: Expression) -> str:
        """Return the form of an operation."""
        if x.op == "cast":
            return self.casts[x.args[0].dtype, x.dtype]
        return self.common.get(x.op) or (self.whole if x.dtype == INT else self.floats)[x.op]

    def operation(self, x: Expression, argument: Callable[[Scalar, str], str]) -> str:
        """Return the code of an operation; ``argument`` prints a value of a type."""
        arguments = zip(x.args, kinds(x), strict=True)
        return self.of(x).format(*(argument(arg, kind) for arg, kind in arguments))


@dataclass(frozen=True)
class Output:
    """What a step writes.

    Attributes:
        form: the statements that write it; {0} is the value.
        dtype: as which type.
        value: what is written.
    """

    form: str
    dtype: str
    value: Scalar


class Printer(Protocol):
    """Prints expressions in one language."""

    def definition(self, x: Expression) -> str:
        """Return the statement that computes an expression."""

    def guard(self, guard: Guard) -> list[str]:
        """Return the statements of a guard."""

    def stored(self, x: Scalar, dtype: str) -> str:
        """Return a value as the type that it is written in."""


def statements(outputs: list[Output], printer: Printer) -> list[str]:
    """Return the lines that compute outputs, and write each as soon as it is known."""
    lines: list[str] = []
    for statement in scheduled([output.value for output in outputs]):
        if isinstance(statement, int):
            output = outputs[statement]
            value = printer.stored(output.value, output.dtype)
            lines.extend(output.form.replace("{0}", value).splitlines())
        elif isinstance(statement, Guard):
            lines.extend(printer.guard(statement))
        else:
            lines.append(printer.definition(statement))
    return lines


def number_places(step: Step) -> dict[tuple[int, int], int]:
    """Return the row of the state that holds a path's place."""
    return {(row.path, row.place): k for k, row in enumerate(step.numbers)}


def kinds(x: Expression) -> list[str]:
    """Return the types of an operation's arguments."""
    if x.op == "where":
        return [BOOL, x.dtype, x.dtype]
    known = [arg.dtype for arg in x.inputs]
    return [known[0]] * len(x.args)

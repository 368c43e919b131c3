"""The parts that the printers of C++ and Triton share."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from qmix_trl.envs.compiled.codegen.schedule import Guard, scheduled
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT, Expression, Scalar
from qmix_trl.envs.compiled.lower.ops import OPS
from qmix_trl.envs.compiled.lower.step import Step

CALLED = re.compile(r"(?<![.\w])([a-z]\w*)\(")


@dataclass(frozen=True)
class Language:
    """The code of operations in one language: where it is not the form in ``OPS``.

    Attributes:
        forms: by operation.
        int_forms: by operation, where the result is an integer; before ``forms``.
        casts: by the type of the argument and that of the result.
    """

    forms: Mapping[str, str]
    int_forms: Mapping[str, str]
    casts: Mapping[tuple[str, str], str]

    def form(self, op: str, dtype: str) -> str:
        """Return the code of an operation with a result of a type; {0}, {1} .. are arguments."""
        if dtype == INT and op in self.int_forms:
            return self.int_forms[op]
        if op in self.forms:
            return self.forms[op]
        return (OPS[op].int_form or OPS[op].form) if dtype == INT else OPS[op].form

    def functions(self) -> set[str]:
        """Return the names of the functions that forms call, except functions of a module."""
        forms = [self.form(op, dtype) for op in OPS if op != "cast" for dtype in (FLOAT, INT)]
        return {name for form in forms for name in CALLED.findall(form)}

    def operation(self, x: Expression, argument: Callable[[Scalar, str], str]) -> str:
        """Return the code of an operation; ``argument`` prints a value of a type."""
        is_cast = x.op == "cast"
        form = self.casts[x.args[0].dtype, x.dtype] if is_cast else self.form(x.op, x.dtype)
        arguments = zip(x.args, argument_dtypes(x), strict=True)
        return form.format(*(argument(arg, dtype) for arg, dtype in arguments))


@dataclass(frozen=True)
class Output:
    """One number that a step writes.

    Attributes:
        form: the statements that write it, with {0} for the value.
        dtype: the type as which it is written.
        value: the number.
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
        """Return the code of a value, converted to the type as which it is written."""


def statements(outputs: list[Output], printer: Printer) -> list[str]:
    """Return the lines that compute outputs and write each as soon as it is known."""
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
    """Return the index among a step's numbers, by path and place."""
    return {(number.tensor, number.place): k for k, number in enumerate(step.numbers)}


def argument_dtypes(x: Expression) -> list[str]:
    """Return the types of an operation's arguments."""
    if x.op == "where":
        return [BOOL, x.dtype, x.dtype]
    known = [arg.dtype for arg in x.inputs]
    return [known[0]] * len(x.args)

"""Rules for docstrings, lengths of functions and imports of tests, checked on the sources."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRINTED = "triton_simd.py"  # Triton copies its functions into kernels
SOURCES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("qmix_trl", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != PRINTED
]
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_LINES = 50
ARGS_FROM = 4  # parameters from which on a docstring lists them
UNPLAIN = re.compile(r"(?<!-)\b(what|those of|anew|in turn)\b", re.IGNORECASE)


def is_rule(function):
    """Say whether a function is a rule that lowers an aten operation.

    ``lower/rules.py`` describes the arguments and the errors of all rules.
    """
    return parameters(function)[:1] == ["call"]


def is_setter(node):
    """Say whether a method sets or deletes a property."""
    return any(
        isinstance(d, ast.Attribute) and d.attr in ("setter", "deleter")
        for d in node.decorator_list
    )


def public_definitions(tree):
    """Yield (definition, class that it belongs to or None) for public classes and functions.

    Methods of public classes are included; functions within functions are not.
    """
    for node in tree.body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
            continue
        yield node, None
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, FUNCTIONS) and not member.name.startswith("_"):
                    yield member, node


def documented(tree):
    """Yield every node with a docstring, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            yield node


def own_nodes(function):
    """Yield the nodes of a function's body, except those of functions and classes within it."""
    waiting = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))


def raises(function):
    """Say whether a function raises an exception other than SystemExit or one that it caught."""
    caught = {n.name for n in own_nodes(function) if isinstance(n, ast.ExceptHandler) and n.name}
    for node in own_nodes(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(raised)
            if name != "SystemExit" and name not in caught:
                return True
    return False


def parameters(function):
    """Return the names of a function's parameters, without ``self`` and ``cls``."""
    a = function.args
    named = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    variadic = [arg.arg for arg in (a.vararg, a.kwarg) if arg is not None]
    return [name for name in (*named, *variadic) if name not in ("self", "cls")]


def body_lines(function):
    """Return the number of lines of a function's body, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def has_section(node, title):
    """Say whether a docstring has a section."""
    docstring = ast.get_docstring(node) or ""
    return any(line.strip() == f"{title}:" for line in docstring.splitlines())


def missing_docstrings(tree):
    """Yield (line, what is missing) for public definitions without a docstring."""
    if not ast.get_docstring(tree):
        yield 1, "the module has no docstring"
    for node, owner in public_definitions(tree):
        if not ast.get_docstring(node) and not is_setter(node):
            yield node.lineno, f"{full_name(node, owner)} has no docstring"


def missing_sections(tree):
    """Yield (line, what is missing) for public functions without ``Raises`` or ``Args``."""
    for node, owner in public_definitions(tree):
        if isinstance(node, ast.ClassDef) or is_setter(node) or is_rule(node):
            continue
        name = full_name(node, owner)
        if raises(node) and not has_section(node, "Raises"):
            yield node.lineno, f"{name} raises without a section 'Raises:'"
        if len(parameters(node)) >= ARGS_FROM and not has_section(node, "Args"):
            yield node.lineno, f"{name} has {len(parameters(node))} parameters and no 'Args:'"


def long_functions(tree):
    """Yield (line, length) for functions that are too long, private ones included."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and body_lines(node) > MAX_LINES:
            yield node.lineno, f"{node.name} has {body_lines(node)} lines, more than {MAX_LINES}"


def unplain_first_lines(tree):
    """Yield (line, word) for docstrings whose first line has a word that reads badly."""
    for node in documented(tree):
        first = ast.get_docstring(node).splitlines()[0]
        found = UNPLAIN.search(first)
        if found:
            yield node.body[0].lineno, f"docstring says {found[0]!r}: {first}"


def full_name(node, owner):
    """Return the name of a definition with its class."""
    return f"{owner.name}.{node.name}" if owner is not None else node.name


CHECKS = (missing_docstrings, missing_sections, long_functions, unplain_first_lines)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_source_file_passes(check):
    found = []
    for name in SOURCES:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"), name)
        found += [f"{name}:{line}: {missing}" for line, missing in check(tree)]
    assert not found, "\n" + "\n".join(found)


def test_no_file_imports_a_test():
    pattern = re.compile(r"^\s*(from test_|import test_)")
    found = []
    for name in TESTS:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        found += [f"{name}:{i}: {line}" for i, line in enumerate(lines, 1) if pattern.match(line)]
    assert not found, "\n" + "\n".join(found)


BAD = '''
class Public:
    """Return what it holds."""

    def method(self, a, b, c, d):
        """Do it."""

    @property
    def size(self):
        """N."""

    @size.setter
    def size(self, value):
        pass

    def __len__(self):
        return 0

    def undocumented(self): ...


def refuse(a):
    """Refuse.

    Raised errors: none is listed.
    """
    if a:
        raise ValueError("a")


def leave():
    """Leave with a code."""
    try:
        pass
    except ValueError as error:
        raise error
    raise SystemExit(2)


def _private(): ...
'''


def test_the_checks_find_each_fault():
    tree = ast.parse(BAD)
    assert [text for _, text in missing_docstrings(tree)] == [
        "the module has no docstring",
        "Public.undocumented has no docstring",
    ]
    assert [text for _, text in missing_sections(tree)] == [
        "Public.method has 4 parameters and no 'Args:'",
        "refuse raises without a section 'Raises:'",
    ]
    assert list(unplain_first_lines(tree)) == [(3, "docstring says 'what': Return what it holds.")]
    assert list(long_functions(tree)) == []


@pytest.mark.parametrize(("n", "found"), [(48, []), (49, [(2, "f has 51 lines, more than 50")])])
def test_the_length_of_a_function_is_that_of_its_body_without_docstring(n, found):
    lines = ["@d", "def f():", '    """One', "", '    two."""', "    x = 1", *["    x += 1"] * n]
    assert list(long_functions(ast.parse("\n".join([*lines, "    return x"])))) == found

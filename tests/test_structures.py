"""C structures printed from ctypes: the layout is the same on both sides."""

import ctypes

import pytest

from qmix_trl.native import build
from qmix_trl.native.structures import c_name, c_struct, pointer_to

INT = ctypes.c_int64


class Inner(ctypes.Structure):
    """A structure that another one holds and points to."""

    _fields_ = [("weight", pointer_to("const float")), ("inputs", INT)]


class Outer(ctypes.Structure):
    """One field of each kind."""

    _fields_ = [
        ("flag", ctypes.c_bool),
        ("first", INT),
        ("rate", ctypes.c_float),
        ("second", INT),
        ("small", ctypes.c_int32),
        ("exact", ctypes.c_double),
        ("done", pointer_to("bool")),
        ("layers", ctypes.POINTER(Inner)),
        ("inner", Inner),
        ("counts", ctypes.POINTER(INT)),
        ("kept", pointer_to("float *const")),
    ]


# Returns the size of a structure; writes the offset of each field.
MEASURE = """
#include <stddef.h>
#include <stdint.h>
{structures}
extern "C" int64_t measure(int64_t *offsets) {{
  const int64_t found[] = {{{offsets}}};
  for (int64_t i = 0; i < {n}; i++) offsets[i] = found[i];
  return sizeof({name});
}}
"""


def measured(structure, text, folder):
    """Return the size of a C structure and the offset of each field of ``structure`` in it."""
    try:
        build.compiler()
    except build.NoCompiler as error:
        pytest.skip(str(error))
    names = [field[0] for field in structure._fields_]
    source = MEASURE.format(
        structures=text,
        offsets=", ".join(f"offsetof({structure.__name__}, {name})" for name in names),
        n=len(names),
        name=structure.__name__,
    )
    folder.mkdir()
    build.build(source, folder / "lib.so")
    offsets = (INT * len(names))()
    size = ctypes.CDLL(str(folder / "lib.so")).measure(offsets)
    return size, dict(zip(names, offsets, strict=True))


def layout(structure):
    """Return the size of a ctypes structure and the offset of each field."""
    offsets = {name: getattr(structure, name).offset for name, *_ in structure._fields_}
    return ctypes.sizeof(structure), offsets


def test_the_printed_structure_has_the_layout_of_ctypes(tmp_path):
    text = c_struct(Inner) + c_struct(Outer)
    assert measured(Outer, text, tmp_path / "outer") == layout(Outer)
    assert measured(Inner, text, tmp_path / "inner") == layout(Inner)


def test_two_swapped_fields_have_another_layout(tmp_path):
    first, second = "  int64_t first;\n", "  int64_t second;\n"
    text = c_struct(Outer)
    assert first in text
    assert second in text
    swapped = text.replace(first, "@").replace(second, first).replace("@", second)
    assert measured(Outer, c_struct(Inner) + swapped, tmp_path / "swapped") != layout(Outer)


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (INT, "int64_t"),
        (ctypes.c_void_p, "void *"),
        (pointer_to("const float"), "const float *"),
        (pointer_to("float *const"), "float *const *"),
        (ctypes.POINTER(Inner), "Inner const *"),
        (ctypes.POINTER(pointer_to("float")), "float * const *"),
    ],
)
def test_types_have_their_names_in_c(type_, expected):
    assert c_name(type_) == expected


def test_a_type_without_a_name_in_c_is_an_error():
    with pytest.raises(KeyError, match="expected a number, a structure or a pointer, got c_char"):
        c_name(ctypes.c_char)


def test_pointers_take_addresses_and_none():
    inner = Inner(weight=64, inputs=3)
    assert inner.weight.value == 64
    inner.weight = None
    assert inner.weight.value is None

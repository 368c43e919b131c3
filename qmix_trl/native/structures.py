"""C structures printed from their ctypes definitions, so that each is written once."""

import ctypes
from functools import cache
from typing import Any

C_NAMES: dict[Any, str] = {
    ctypes.c_bool: "bool",
    ctypes.c_int32: "int32_t",
    ctypes.c_int64: "int64_t",
    ctypes.c_float: "float",
    ctypes.c_double: "double",
    ctypes.c_void_p: "void *",
}


@cache
def pointer_to(element: str) -> type[ctypes.c_void_p]:
    """Return the ctypes type of a pointer to ``element``, a C type such as "const float".

    Fields of this type take integers (``tensor.data_ptr()``) and None, as ``c_void_p`` does.
    """
    return type(f"pointer_to_{element}", (ctypes.c_void_p,), {"element": element})


def c_struct(structure: type[ctypes.Structure]) -> str:
    """Return the C definition of a structure, of the same name, fields and layout.

    ``POINTER(T)`` becomes a pointer to a constant T. Structures that the fields hold or point to
    must be defined before this one.

    Raises:
        KeyError: if a field's type has no name in C.
    """
    fields = "".join(f"  {c_name(type_)} {name};\n" for name, type_ in structure._fields_)
    return f"struct {structure.__name__} {{\n{fields}}};\n"


def c_name(type_: Any) -> str:
    """Return the C name of a ctypes type, such as "int64_t" or "const float *".

    Raises:
        KeyError: if it has none.
    """
    if type_ in C_NAMES:
        return C_NAMES[type_]
    if issubclass(type_, ctypes.Structure):
        return type_.__name__
    if issubclass(type_, ctypes._Pointer):
        return f"{c_name(type_._type_)} const *"
    if issubclass(type_, ctypes.c_void_p):
        return f"{type_.element} *"
    raise KeyError(f"c_name: expected a number, a structure or a pointer, got {type_.__name__}")

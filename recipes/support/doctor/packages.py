"""The packages that a run uses: their versions against the ranges of pyproject, their imports."""

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.doctor.finding import Finding

from qmix_trl import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT = "qmix-trl"
TOOLS = "dev"  # the extra whose packages are looked up and not imported
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "pytest-xdist": "xdist"}  # of packages of other names
DRIVER = Path("/proc/driver/nvidia/version")
PROBE = Path(__file__).with_name("probe.py")


def check_python() -> Finding:
    """Return the finding of Python's version."""
    found = platform.python_version()
    wanted = _ranges().get("Requires-Python", ">=3.10")
    is_old = sys.version_info[:2] < tuple(int(x) for x in wanted.removeprefix(">=").split("."))
    return Finding(
        "wrong" if is_old else "ok",
        "python",
        f"{found}, {sys.executable}",
        f"expected {wanted}; make a virtual environment of another Python" if is_old else "",
        is_needed=True,
    )


def check_project() -> Finding:
    """Return the finding of this project's own installation."""
    place = f"{__version__}, {Path(__file__).parents[3]}"
    if not _ranges():
        remedy = 'pip install -e ".[recipes]" in the repository, so that ranges are known'
        return Finding("missing", PROJECT, f"{place}, not installed", remedy)
    return Finding("ok", PROJECT, place)


def requirements() -> tuple[list["Requirement"], dict[str, list["Requirement"]]]:
    """Return the required packages, and by name of each extra its packages.

    Raises:
        ImportError: if the library that reads them, packaging, cannot be imported.
    """
    from packaging.requirements import Requirement

    told = _ranges()
    listed = [Requirement(line) for line in told.get_all("Requires-Dist") or []] if told else []
    listed = [one for one in listed if one.name != PROJECT]  # an extra made of others
    core = [one for one in listed if _is_for(one, "")]
    names = told.get_all("Provides-Extra") or [] if told else []
    return core, {
        name: [one for one in listed if one not in core and _is_for(one, name)] for name in names
    }


def check_packages() -> Iterator[Finding]:
    """Yield the findings of required packages, then of extras, then of the GPU."""
    try:
        core, extras = requirements()
    except ImportError:
        remedy = "pip install packaging"
        yield Finding("missing", "packaging", "torchrl needs it", remedy, is_needed=True)
        return
    tried = [one.name for one in core]
    tried += [one.name for name, group in extras.items() if name != TOOLS for one in group]
    errors = imported([module_of(name) for name in dict.fromkeys(tried) if _version(name)])
    for one in core:
        yield check_package(one, errors, is_needed=True)
    for name, group in extras.items():
        yield _check_extra(name, [check_package(one, errors) for one in group])
    yield check_gpu(errors.get("cuda"))


def check_package(
    one: "Requirement", errors: Mapping[str, Any], is_needed: bool = False
) -> Finding:
    """Return the finding of a package.

    Args:
        one: the package and its range.
        errors: of the imports, by module; None where one succeeded, nothing where none was tried.
        is_needed: whether no run works without it.
    """
    found, wanted = _version(one.name), f"{one.name}{one.specifier}"
    install = f"pip install '{wanted}'"
    if found is None:
        return Finding("missing", one.name, f"expected {wanted}", install, is_needed)
    if not one.specifier.contains(found, prereleases=True):
        return Finding("wrong", one.name, f"{found}, expected {wanted}", install, is_needed)
    error = errors.get(module_of(one.name))
    if error is not None:
        again = f"pip install --force-reinstall '{wanted}'"
        return Finding("wrong", one.name, f"{found}, not imported: {error}", again, is_needed)
    return Finding("ok", one.name, found, is_needed=is_needed)


def _check_extra(name: str, findings: list[Finding]) -> Finding:
    """Return the finding of an extra, from the findings of its packages."""
    faults = [finding for finding in findings if finding.state != "ok"]
    shown = ", ".join(f"{finding.name} {finding.detail}" for finding in faults or findings)
    wrong = [finding for finding in faults if finding.state == "wrong"]
    if wrong:
        return Finding("wrong", f"extra {name}", shown, wrong[0].remedy)
    if faults:
        lacking = "without " + ", ".join(finding.name for finding in faults)
        return Finding("missing", f"extra {name}", lacking, f"pip install '{PROJECT}[{name}]'")
    return Finding("ok", f"extra {name}", shown)


def check_gpu(seen: Mapping[str, Any] | None) -> Finding:
    """Return the finding of the GPU.

    Args:
        seen: by torch, as ``probe.cuda`` tells; None if torch cannot be imported.
    """
    if seen and seen["names"]:
        return Finding("ok", "gpu", f"{', '.join(seen['names'])}, CUDA {seen['version']}")
    if DRIVER.exists():
        built = f"built for CUDA {seen['version']}" if seen and seen["version"] else "a CPU build"
        remedy = "pip install --force-reinstall torch takes the CUDA build; runs take the CPU"
        return Finding("wrong", "gpu", f"an NVIDIA driver, but torch ({built}) sees none", remedy)
    return Finding("ok", "gpu", "none; runs take the CPU")


def imported(modules: Iterable[str]) -> dict[str, Any]:
    """Import modules in a process of its own; return the error of each, and the GPUs of torch.

    Args:
        modules: their names.
    """
    errors: dict[str, Any] = {}
    modules = list(modules)
    while left := [name for name in modules if name not in errors]:
        done = subprocess.run(
            [sys.executable, str(PROBE), *left],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
        errors |= dict(told)
        ended = next((name for name in left if name not in errors), None)
        if ended is not None:  # the others are tried without it
            errors[ended] = f"it ends Python by exit code {done.returncode}"
    return errors


def module_of(package: str) -> str:
    """Return the module of a package."""
    return MODULES.get(package.lower(), package.lower().replace("-", "_"))


def _is_for(one: "Requirement", extra: str) -> bool:
    return one.marker is None or one.marker.evaluate({"extra": extra})


def _version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ranges() -> Any:
    """Return the metadata of this project; empty if it is not installed."""
    try:
        return metadata(PROJECT)
    except PackageNotFoundError:
        return {}

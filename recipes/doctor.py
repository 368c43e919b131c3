"""Check this machine: python recipes/doctor.py [--clean] [--config CONFIG [key.sub=value ..]]

Each line says ok, missing or wrong, and how to mend it. The exit code is 0 if a run works, else 3.
--config measures for about 20 seconds, and recommends numbers of environments and of threads.
"""

import argparse
from contextlib import suppress

from support.commands import typed
from support.doctor.finding import show
from support.doctor.machine import (
    check_cache,
    check_cpp,
    check_cpu,
    check_disk,
    check_drawing,
    check_memory,
    check_run,
)
from support.doctor.packages import check_packages, check_project, check_python
from support.shipped import config_file
from support.terminal import Paragraphs

from qmix_trl.errors import MachineError, exit_on_mistake


def check(*, is_cleaned: bool) -> None:
    """Print the findings of this machine.

    Args:
        is_cleaned: whether stale entries of the cache are removed.

    Raises:
        MachineError: if no run works.
    """
    findings = []

    def tell(*found) -> None:
        """Print findings as soon as they are known."""
        for finding in found:
            show(finding)
            findings.append(finding)

    tell(check_python(), check_project())
    for finding in check_packages():
        tell(finding)
    tell(check_cpu(), check_cpp(), check_cache(is_cleaned=is_cleaned))
    tell(*check_drawing(), check_disk(), check_memory())
    if not any(finding.ends_runs for finding in findings):
        tell(check_run())
    faults = [finding for finding in findings if finding.ends_runs]
    if faults:
        names = ", ".join(finding.name for finding in faults)
        raise MachineError(f"no run works: {names}; {faults[0].remedy}")


def measure(config: str, overrides: list[str]) -> None:
    """Measure choices of sizes for a configuration, and print the one to take.

    Args:
        config: the file of a configuration, or its name.
        overrides: of it.

    Raises:
        ConfigError: if the configuration has a mistake.
        MachineError: if the machine lacks the device.
    """
    from support.components import choose_device
    from support.doctor.reading import HEADINGS, is_busy, read, recommended, row

    from qmix_trl import load_config

    loaded = load_config(config_file(config), overrides)
    noise = "; other processes are busy, so read again when they have ended" if is_busy() else ""
    print(f"\nframes a second of training {config}, with equally many updates for each frame")
    print(row(HEADINGS), flush=True)
    readings = read(loaded, choose_device(loaded.runtime.device))
    for reading in readings:
        print(reading)
    chosen = recommended(readings, loaded)
    sizes = chosen.choice.overrides()
    print(f"choices whose ranges overlap are no different{noise}")
    print("more environments also make batches less alike and updates rarer")
    print(f"recommended: {' '.join(sizes)}")
    print(f"next: {typed('train', config, *overrides, *sizes)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    parser.add_argument("--clean", action="store_true", help="remove stale entries of the cache")
    parser.add_argument("--config", help="a file, or a name such as balance_quick")
    parser.add_argument("overrides", nargs="*", help="of CONFIG", metavar="key.sub=value")
    arguments = parser.parse_intermixed_args()
    if arguments.overrides and arguments.config is None:
        parser.error("expected --config CONFIG with key.sub=value")
    with exit_on_mistake():
        if arguments.config is not None:
            with suppress(ImportError):  # the check tells what is missing
                from qmix_trl.config.load import load_config

                load_config(config_file(arguments.config), arguments.overrides)
        check(is_cleaned=arguments.clean)
        if arguments.config is None:
            print(f"next: {typed('train', 'balance_quick')}")
        else:
            measure(arguments.config, arguments.overrides)

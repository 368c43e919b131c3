"""Import modules and tell about each: python probe.py MODULE ..

A process of its own imports them, as a broken library can end its process. It prints a line of JSON
for each module, [name, error or null], and one for "cuda" after torch.
"""

import importlib
import json
import sys
import warnings
from typing import Any


def tell(name: str, said: Any) -> None:
    """Print a line of JSON, on a line of its own, whatever a module prints."""
    print(f"\n{json.dumps([name, said])}", flush=True)


def cuda() -> dict[str, Any]:
    """Return the version of CUDA in torch, and the names of the devices that torch sees."""
    import torch

    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(i) for i in range(n_devices)]
    return {"version": torch.version.cuda, "names": names}


if __name__ == "__main__":
    del sys.path[0]  # this folder
    warnings.simplefilter("ignore")
    for name in sys.argv[1:]:
        try:
            importlib.import_module(name)
            tell(name, None)
        except BaseException as error:
            tell(name, " ".join(f"{type(error).__name__}: {error}".split())[:200])
    if "torch" in sys.modules:
        tell("cuda", cuda())

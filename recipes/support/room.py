"""The memory and the disk that a process can still take, read without torch."""

import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which may not exist yet."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    return shutil.disk_usage(there).free


def free_system_memory() -> int:
    """Return the bytes of memory that a process can still take; 2**63 where no one tells."""
    return min([*system_room(ROOT), *cgroup_room(ROOT)], default=2**63)


def system_room(root: Path) -> Iterator[int]:
    """Yield the bytes of memory that Linux calls available; nothing on another system."""
    text = _read(root / "proc/meminfo")
    yield from (
        int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable")
    )


def cgroup_room(root: Path) -> Iterator[int]:
    """Yield the bytes up to the limit of each control group of the process: a container's."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        most, now, cached = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if kinds
            else ("memory.max", "memory.current", "inactive_file")
        )
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):  # in a container the path may be the host's
            limit, used = _read(folder / most).strip(), _read(folder / now).strip()
            if limit.isdigit() and used.isdigit():
                stats = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
                yield max(0, int(limit) - int(used) + int(stats.get(cached, 0)))
            if folder == base:
                break


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

"""Profiles of ``throughput.py``: the kernels of a round, and where the host waits for a GPU."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from support.throughput.timing import Runner, synchronize
from torch.profiler import ProfilerActivity
from torch.profiler import profile as recording

MOST_LINES = 40  # of a table


def profile(runner: Runner, path: Path, device: torch.device) -> None:
    """Write the profile of one round to a file.

    Args:
        runner: to profile.
        path: of the file; its folder is made.
        device: of the runner.
    """
    waits = waiting_places(runner.run) if device.type == "cuda" else []
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with recording(activities=activities) as record:
        runner.run()
        synchronize(device)
    events = record.key_averages()
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    by = "self_device_time_total" if kernels else "self_cpu_time_total"
    device_ms = sum(event.self_device_time_total for event in kernels) / 1e3
    lines = [
        f"steps: {runner.n_steps}",
        f"kernels: {sum(event.count for event in kernels)} launched, {device_ms:.3f} ms",
        f"the host waits at: {', '.join(waits) or 'no place'}",
        events.table(sort_by=by, row_limit=MOST_LINES, max_name_column_width=90),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def waiting_places(run: Callable[[], object]) -> list[str]:
    """Return the lines of code, as FILE:LINE, at which a run waits for the GPU."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in found if "synchroniz" in str(warning.message)]
    return sorted({f"{Path(wait.filename).name}:{wait.lineno}" for wait in waits})

"""Configurations of runs that were made before some keys were added."""

from qmix_trl.config.strict_yaml import Entry, overridden

# What a run did before there was a key, in YAML.
ADDED = {
    "agent.layer_norm": "false",
    "evaluation.video": "false",
    "logging": "[]",
    "loss.bounded_targets": "false",
    "loss.weighting": "null",
    "replay.storage": "memory",
    "replay.sampling": "uniform",
    "checkpoint": "{every_seconds: null, keep: 2}",
}
ADDED_FOR_VMAS = {"env.others": "no_op", "env.actions_per_dimension": "null"}


def with_added_keys(root: Entry) -> Entry:
    """Return the entries of a run's configuration, with the keys that were added since then.

    Args:
        root: the entries of the file.
    """
    if not isinstance(root.value, dict):
        return root
    env = root.value.get("env")
    section = env.value if env and isinstance(env.value, dict) else {}
    is_vmas = "family" in section and section["family"].value == "vmas"
    for key, text in (ADDED | ADDED_FOR_VMAS if is_vmas else ADDED).items():
        if _lacks(root, key.split(".")):
            root = overridden(root, f"{key}={text}")
    return root


def _lacks(entry: Entry, names: list[str]) -> bool:
    """Return whether a section is there that lacks the key at the end of a path."""
    if not isinstance(entry.value, dict):
        return False
    name, *rest = names
    if name not in entry.value:
        return not rest
    return bool(rest) and _lacks(entry.value[name], rest)

"""Every TensorDict key, the letters that shapes are written in, and the glossary.

Shape letters: B rows of a batch, E environments, T transitions (a row holds T + 1 observations),
N agents, O observation size, A actions, S state size, H hidden size, K cut steps of a row,
M values learned per step (1 with a mixer, N without).

Glossary: *utility* Q_a, one agent's value; *joint value* Q_tot, the mixer's output; *frame* one
step of one environment, whatever the number of agents; *row* one sequence of replay; *hidden* the
recurrent state that an agent carries from step to step; *cut* a step whose episode is truncated
while the row goes on with the next episode.

The spellings are TorchRL's own, so that the parts fit its losses and environments without
``set_keys``.
"""

OBSERVATION = ("agents", "observation")  # [.., N, O] float
ACTION = ("agents", "action")  # [.., N] int64, the joint action
ACTION_MASK = ("agents", "action_mask")  # [.., N, A] bool, True = available; optional
LAST_ACTION = ("agents", "last_action")  # [.., N, A] float, one-hot; zeros after a reset
HIDDEN = ("agents", "hidden")  # [.., N, H] float
ACTION_VALUE = ("agents", "action_value")  # [.., N, A] float, Q_a(.)
CHOSEN_ACTION_VALUE = ("agents", "chosen_action_value")  # [.., N, 1] float, Q_a(u_a)
GREEDY_ACTION_VALUE = ("agents", "greedy_action_value")  # [.., N, 1] float, max Q_a(.)
AGENT_REWARD = ("agents", "reward")  # [.., N, 1] float, under "next"
TOTAL_VALUE = "chosen_action_value"  # [.., 1] float, Q_tot
STATE = "state"  # [.., S] float, the mixer's view of the environment
REWARD = "reward"  # [.., 1] float, the team's, under "next"
TERMINATED = "terminated"  # [.., 1] bool, under "next": no value beyond this step
TRUNCATED = "truncated"  # [.., 1] bool, under "next": cut off, the value goes on
DONE = "done"  # [.., 1] bool, under "next": terminated or truncated
IS_INIT = "is_init"  # [.., 1] bool, the first step of an episode
MASK = ("collector", "mask")  # [B, T] bool, False = padding
CUT_STEPS = "cut_steps"  # [B, T, K] int64, s - t for K steps s of the row; all cuts are among them
EPISODE_REWARD = "episode_reward"  # [.., 1] float, the team's since the reset, under "next"
PRIORITY_WEIGHT = "priority_weight"  # [B, ..] float, importance weight of a row or a step
TD_ERROR = "td_error"  # [B, T, 1] float, the priority of a step or a row in TorchRL's replay
POLICY_VERSION = "policy_version"  # [.., 1] int64, the number of the weights that acted
SHIFTED_VALID = "shifted_valid"  # [B, T] bool, False = no target, by TorchRL's value estimators


def next_key(key: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return ``key`` as it is spelt in the entry ``"next"`` of a step."""
    return ("next", key) if isinstance(key, str) else ("next", *key)

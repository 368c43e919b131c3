"""The names of VMAS's scenarios and their groups of agents."""

import pytest
from vmas_tools import SEVERAL_GROUPS

from qmix_trl.envs.vmas_scenarios import SCENARIOS, agent_groups


def test_there_are_33_scenarios_of_one_group():
    # 41 files in vmas/scenarios and its folders, of which 8 have agents of several kinds.
    assert len(SCENARIOS) == 41
    assert set(SEVERAL_GROUPS) < set(SCENARIOS)


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["agent_0", "agent_1"], {"agents": [0, 1]}),
        (["agent_0", "agent"], {"agents": [0, 1]}),
        (["red_0", "blue_0", "red_1"], {"red": [0, 2], "blue": [1]}),
        (["_0", "red_1"], {"agents": [0, 1]}),
        (["robot_arm_0"], {"robot_arm": [0]}),
    ],
)
def test_agents_are_grouped_by_the_name_before_their_number(names, groups):
    assert agent_groups(names) == groups

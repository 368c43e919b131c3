"""Our components in TorchRL's losses, and TorchRL's mixers in ours, learn."""

import pytest
import reuse_qmixer


@pytest.mark.slow
def test_each_loss_of_reuse_qmixer_falls():
    losses = reuse_qmixer.main(100)
    assert set(losses) == {"qmixer_loss", "ddpg_loss", "torchrl_qmixer", "torchrl_vdn"}
    for name, (first, last) in losses.items():
        assert last < 0.97 * first, name

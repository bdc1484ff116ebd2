"""Random changes of members; see member_chaos."""

import pytest
from member_chaos import Chaos


@pytest.mark.parametrize("seed", range(40))
def test_members_that_change_at_random_decide_one_log(seed: int) -> None:
    Chaos(seed).run()

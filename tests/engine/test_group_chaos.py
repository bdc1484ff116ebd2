"""Groups that come and go at random; see group_chaos."""

import pytest
from group_chaos import GroupChaos


@pytest.mark.parametrize("seed", range(40))
def test_groups_that_come_and_go_at_random_are_each_a_log_of_its_own(seed: int) -> None:
    GroupChaos(seed).run()

"""Successive halving: one in `factor` of those that reach a rung goes on."""

from consomme.sweep.stoppers import Asha


def test_rungs_grow_by_the_factor_and_end_before_the_end() -> None:
    assert Asha(grace_steps=10, factor=3).rungs(100) == [10, 30, 90]
    assert Asha(grace_steps=10, factor=3).rungs(90) == [10, 30]


def test_one_in_so_many_goes_on() -> None:
    stopper = Asha(grace_steps=1, factor=3)
    reached: list[float] = []
    went_on = []
    for loss in (5.0, 6.0, 4.0, 4.5, 3.0, 7.0, 3.5):
        reached.append(loss)
        if stopper.goes_on(loss, reached):
            went_on.append(loss)
    # By hand: the first is alone; 6 is behind 5; 4 leads; of four two may, so 4.5 goes on;
    # 3 leads; 7 is last of six, of whom two may; of seven three may, and 3.5 is second.
    assert went_on == [5.0, 4.0, 4.5, 3.0, 3.5]


def test_rungs_that_are_no_checkpoints_are_refused() -> None:
    assert Asha(grace_steps=10).problems(checkpoint_every=5, num_steps=20) == []
    (problem,) = Asha(grace_steps=10).problems(checkpoint_every=4, num_steps=20)
    assert "multiple of train.checkpoint_every=4" in problem
    (problem,) = Asha(grace_steps=20).problems(checkpoint_every=5, num_steps=20)
    assert "less than train.num_steps=20" in problem

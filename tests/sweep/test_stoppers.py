"""ASHA: one in `factor` of the trials that reach a rung continues."""

from consomme.sweep.stoppers import Asha


def test_rungs_grow_by_the_factor_and_end_before_the_end() -> None:
    assert Asha(grace_steps=10, factor=3).rung_steps(100) == [10, 30, 90]
    assert Asha(grace_steps=10, factor=3).rung_steps(90) == [10, 30]


def test_one_in_factor_continues() -> None:
    stopper = Asha(grace_steps=1, factor=3)
    losses: list[float] = []
    continued = []
    for loss in (5.0, 6.0, 4.0, 4.5, 3.0, 7.0, 3.5):
        losses.append(loss)
        if stopper.should_continue(loss, losses):
            continued.append(loss)
    # By hand: 5 is the only one; 6 is worse than 5; 4 is the best; of four two continue, so 4.5
    # does; 3 is the best; of six two continue, and 7 is last; of seven three, and 3.5 is second.
    assert continued == [5.0, 4.0, 4.5, 3.0, 3.5]


def test_rungs_that_are_no_checkpoints_are_refused() -> None:
    assert Asha(grace_steps=10).problems(checkpoint_every=5, num_steps=20) == []
    (problem,) = Asha(grace_steps=10).problems(checkpoint_every=4, num_steps=20)
    assert "multiple of train.checkpoint_every=4" in problem
    (problem,) = Asha(grace_steps=20).problems(checkpoint_every=5, num_steps=20)
    assert "less than train.num_steps=20" in problem

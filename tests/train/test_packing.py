"""Every sample of a step is in one pass of one rank, packed or not."""

from hypothesis import given
from hypothesis import strategies as st

from consomme.train.packing import Pass, RowLayout, packed, padded

LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=60)


def samples_of(shares: list[list[Pass]]) -> list[int]:
    return sorted(k for passes in shares for rows in passes for row in rows for k in row)


@given(num=st.integers(1, 60), world=st.integers(1, 7), micro_batch=st.integers(1, 9))
def test_padded_passes_share_the_samples(num: int, world: int, micro_batch: int) -> None:
    shares = padded(num, world, micro_batch)
    assert samples_of(shares) == list(range(num))
    assert len(shares) == world
    assert len({len(passes) for passes in shares}) == 1, "all ranks go through equally many passes"
    sizes = [len(rows) for passes in shares for rows in passes]
    assert max(sizes) <= micro_batch
    assert max(sizes) - min(sizes) <= 1
    assert all(len(row) == 1 for passes in shares for rows in passes for row in rows)


@given(lengths=LENGTHS, world=st.integers(1, 5), capacity=st.integers(20, 200))
def test_packed_rows_keep_their_capacity(lengths: list[int], world: int, capacity: int) -> None:
    shares = packed(lengths, world, capacity)
    assert samples_of(shares) == list(range(len(lengths)))
    assert len({len(passes) for passes in shares}) == 1
    rows = [row for passes in shares for rows in passes for row in rows]
    for row in rows:
        assert sum(lengths[k] for k in row) <= capacity or len(row) == 1
    assert all(len(rows) <= 1 for passes in shares for rows in passes)
    # No two rows fit into one.
    sums = sorted(sum(lengths[k] for k in row) for row in rows)
    assert len(sums) < 2 or sums[0] + sums[1] > capacity


@given(lengths=LENGTHS, capacity=st.integers(20, 200))
def test_the_ranks_of_a_pass_wait_little(lengths: list[int], capacity: int) -> None:
    shares = packed(lengths, 3, capacity)
    rows = [[sum(lengths[k] for row in rows for k in row) for rows in passes] for passes in shares]
    longest_first = [size for sizes in zip(*rows, strict=True) for size in sizes]
    assert longest_first == sorted(longest_first, reverse=True)


def test_the_same_step_is_always_shared_alike() -> None:
    lengths = [30, 10, 20, 30, 10, 20, 40]
    assert packed(lengths, 2, 60) == packed(lengths, 2, 60)
    assert packed(lengths, 1, 60) == [[[[0, 3]], [[6, 2]], [[5, 1, 4]]]]


@given(
    lengths=LENGTHS,
    world=st.integers(1, 5),
    pack_tokens=st.none() | st.integers(20, 200),
    alone_beyond=st.none() | st.integers(1, 130),
)
def test_long_samples_have_passes_of_their_own(
    lengths: list[int], world: int, pack_tokens: int | None, alone_beyond: int | None
) -> None:
    layout = RowLayout(micro_batch=4, pack_tokens=pack_tokens, alone_beyond=alone_beyond)
    shares = layout.split(lengths, world)
    assert samples_of(shares) == list(range(len(lengths)))
    assert len({len(passes) for passes in shares}) == 1
    for rows in (rows for passes in shares for rows in passes):
        samples = [k for row in rows for k in row]
        assert len(samples) == 1 or not any(layout.is_alone(lengths[k]) for k in samples)
    batches = layout.batches(lengths)
    assert sorted(k for batch in batches for k in batch) == list(range(len(lengths)))
    assert all(
        len(batch) == 1 or not any(layout.is_alone(lengths[k]) for k in batch) for batch in batches
    )
    if alone_beyond is None:
        expected = (
            padded(len(lengths), world, 4)
            if pack_tokens is None
            else packed(lengths, world, pack_tokens)
        )
        assert shares == expected


def test_texts_may_have_passes_of_their_own() -> None:
    """No pass mixes them with images on any rank; the first and last pass of a step have images."""
    layout = RowLayout(micro_batch=2, has_text_passes=True)
    num_images = [0, 1, 0, 0, 3, 0, 0]
    for world in (1, 2, 3):
        for images in (num_images, [0] * 7, [1] * 7, [*num_images[:6], 1]):
            ranks = layout.split([9] * 7, world, images)
            assert len({len(passes) for passes in ranks}) == 1
            found = sorted(k for passes in ranks for rows in passes for (k,) in rows)
            assert found == list(range(7))
            kinds = [
                {bool(images[k]) for rows in every for (k,) in rows} or {True}
                for every in zip(*ranks, strict=True)
            ]
            assert all(len(kind) == 1 for kind in kinds)
            assert kinds[0] == kinds[-1] == {True}

"""Conversations that begin alike: each token sees its own conversation, and no other."""

import torch

from consomme.engines.scoring.prefix_tree import PrefixLimits, PrefixTree, build_trees, lay_out
from consomme.engines.scoring.requests import EncodedConversation
from consomme.models.encoded import EncodedChat, Pixels


def passage(prefix: list[int], rest: list[int], picture: object = None) -> EncodedConversation:
    ids = [*prefix, *rest]
    pixels = None
    if picture is not None:
        pixels = Pixels(inputs={"pixel_values": torch.zeros(1, 1)}, num_tokens=1)
    spoken = EncodedChat(
        input_ids=ids,
        spans=[(len(prefix), len(ids))],
        token_types=[0] * len(ids),
        pixels=pixels,
    )
    return EncodedConversation(spoken=spoken, picture=picture)


def seen(tree: PrefixTree) -> dict[tuple[int, ...], list[int]]:
    """By suffix: the tokens its last token may look at, in order of position."""
    other = build_trees([passage([1], [2])], None)[0]
    layout = lay_out([tree, other], None)
    assert layout.positions is not None
    found, at = {}, len(tree.ids)
    for suffix in tree.suffixes:
        at += len(suffix.ids)
        places = (layout.mask[0, 0, at - 1] == 0).nonzero().flatten()
        places = places[layout.positions[0, places].argsort()]
        assert layout.positions[0, places].tolist() == list(range(len(places)))
        found[suffix.ids] = layout.ids_BT[0, places].tolist()
    return found


def test_every_branch_sees_its_own_conversation_only() -> None:
    prefix = [5, 6, 7]
    (tree,) = build_trees(
        [passage(prefix, [10, 11]), passage(prefix, [20]), passage(prefix, [30, 31, 32])],
        PrefixLimits(cheap=64),
    )
    assert len(tree) == 3 + 6
    assert seen(tree) == {
        (20,): [5, 6, 7, 20],
        (10, 11): [5, 6, 7, 10, 11],
        (30, 31, 32): [5, 6, 7, 30, 31, 32],
    }


def test_what_is_the_same_goes_through_once_and_pictures_stay_apart() -> None:
    prefix = [5, 6]
    trees = build_trees(
        [
            passage(prefix, [10]),
            passage(prefix, [10]),
            passage(prefix, [10], "a"),
            passage(prefix, [10], "b"),
            passage([5, 7], [10]),
        ],
        PrefixLimits(cheap=64),
    )
    assert [(tree.picture, [b.numbers for b in tree.suffixes]) for tree in trees] == [
        (None, [[0, 1]]),
        ("a", [[2]]),
        ("b", [[3]]),
        (None, [[4]]),
    ]


def test_trees_stay_short_but_long_stems_are_shared() -> None:
    many = [passage([1, 2], [10 + k, 50 + k]) for k in range(9)]
    assert [len(tree) for tree in build_trees(many, PrefixLimits(cheap=8))] == [8, 8, 8]
    assert [len(tree) for tree in build_trees(many, PrefixLimits(cheap=8, most=5))] == [4] * 9
    long = [passage(list(range(100)), [200 + k]) for k in range(50)]
    assert [len(tree) for tree in build_trees(long, PrefixLimits(cheap=8))] == [150]
    assert [tree.is_plain for tree in build_trees(many, None)] == [True] * 9


def test_the_first_spoken_token_is_predicted_from_the_stem() -> None:
    prefix = [5, 6, 7]
    trees = build_trees([passage(prefix, [10, 11]), passage(prefix, [20])], PrefixLimits(cheap=64))
    layout = lay_out(trees, None)
    assert layout.labels == [20, 10, 11]
    assert layout.predictors == [2, 2, 4]
    assert layout.counts == [1, 2]


def test_padding_looks_at_something() -> None:
    trees = build_trees(
        [passage([1, 2], [3]), passage([1, 2], [4]), passage([9], [8])], PrefixLimits(cheap=64)
    )
    mask = lay_out(trees, None).mask
    assert (mask == 0).any(dim=-1).all()


def test_a_tree_is_cut_in_halves_with_the_same_stem() -> None:
    (tree,) = build_trees([passage([1, 2], [k]) for k in range(3, 8)], PrefixLimits(cheap=64))
    first, second = tree.halves()
    assert first.ids == second.ids == (1, 2)
    assert [b.numbers for b in first.suffixes + second.suffixes] == [[k] for k in range(5)]

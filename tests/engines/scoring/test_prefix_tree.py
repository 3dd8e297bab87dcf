"""Conversations with a common prefix: each token attends to its own conversation only."""

import torch

from consomme.engines.scoring.prefix_tree import PrefixLimits, PrefixTree, batch_trees, build_trees
from consomme.engines.scoring.requests import EncodedConversation
from consomme.models.encoded import EncodedChat, Pixels


def conversation(
    prefix: list[int], rest: list[int], image_key: object = None
) -> EncodedConversation:
    ids = [*prefix, *rest]
    pixels = Pixels(inputs={"pixel_values": torch.zeros(1, 1)}, num_tokens=1)
    chat = EncodedChat(
        input_ids=ids,
        spans=[(len(prefix), len(ids))],
        token_types=[0] * len(ids),
        images=() if image_key is None else (pixels,),
    )
    return EncodedConversation(chat=chat, image_keys=() if image_key is None else (image_key,))


def attended(tree: PrefixTree) -> dict[tuple[int, ...], list[int]]:
    """By suffix: the tokens that its last token attends to, in order of position."""
    other = build_trees([conversation([1], [2])], None)[0]
    batch = batch_trees([tree, other], None)
    assert batch.positions is not None
    found, at = {}, len(tree.ids)
    for suffix in tree.suffixes:
        at += len(suffix.ids)
        positions = (batch.mask[0, 0, at - 1] == 0).nonzero().flatten()
        positions = positions[batch.positions[0, positions].argsort()]
        assert batch.positions[0, positions].tolist() == list(range(len(positions)))
        found[suffix.ids] = batch.ids_BT[0, positions].tolist()
    return found


def test_every_suffix_attends_to_its_own_conversation_only() -> None:
    prefix = [5, 6, 7]
    (tree,) = build_trees(
        [
            conversation(prefix, [10, 11]),
            conversation(prefix, [20]),
            conversation(prefix, [30, 31, 32]),
        ],
        PrefixLimits(max_tokens=64),
    )
    assert len(tree) == 3 + 6
    assert attended(tree) == {
        (20,): [5, 6, 7, 20],
        (10, 11): [5, 6, 7, 10, 11],
        (30, 31, 32): [5, 6, 7, 30, 31, 32],
    }


def test_equal_conversations_share_a_suffix_and_images_do_not_mix() -> None:
    prefix = [5, 6]
    trees = build_trees(
        [
            conversation(prefix, [10]),
            conversation(prefix, [10]),
            conversation(prefix, [10], "a"),
            conversation(prefix, [10], "b"),
            conversation([5, 7], [10]),
        ],
        PrefixLimits(max_tokens=64),
    )
    assert [(tree.image_keys, [suffix.indices for suffix in tree.suffixes]) for tree in trees] == [
        ((), [[0, 1]]),
        (("a",), [[2]]),
        (("b",), [[3]]),
        ((), [[4]]),
    ]


def test_trees_stay_short_but_long_prefixes_are_shared() -> None:
    many = [conversation([1, 2], [10 + k, 50 + k]) for k in range(9)]
    assert [len(tree) for tree in build_trees(many, PrefixLimits(max_tokens=8))] == [8, 8, 8]
    assert [len(tree) for tree in build_trees(many, PrefixLimits(max_tokens=8, window=5))] == [
        4
    ] * 9
    long = [conversation(list(range(100)), [200 + k]) for k in range(50)]
    assert [len(tree) for tree in build_trees(long, PrefixLimits(max_tokens=8))] == [150]
    assert [tree.is_single for tree in build_trees(many, None)] == [True] * 9


def test_the_first_scored_token_is_predicted_from_the_prefix() -> None:
    prefix = [5, 6, 7]
    trees = build_trees(
        [conversation(prefix, [10, 11]), conversation(prefix, [20])], PrefixLimits(max_tokens=64)
    )
    batch = batch_trees(trees, None)
    assert batch.labels == [20, 10, 11]
    assert batch.predictors == [2, 2, 4]
    assert batch.counts == [1, 2]


def test_padding_attends_to_something() -> None:
    trees = build_trees(
        [conversation([1, 2], [3]), conversation([1, 2], [4]), conversation([9], [8])],
        PrefixLimits(max_tokens=64),
    )
    mask = batch_trees(trees, None).mask
    assert (mask == 0).any(dim=-1).all()


def test_halves_of_a_tree_have_the_same_prefix() -> None:
    (tree,) = build_trees(
        [conversation([1, 2], [k]) for k in range(3, 8)], PrefixLimits(max_tokens=64)
    )
    first, second = tree.halves()
    assert first.ids == second.ids == (1, 2)
    assert [suffix.indices for suffix in first.suffixes + second.suffixes] == [
        [k] for k in range(5)
    ]

"""Score conversations with a model's own forward pass, with their images and without.

Requests are processed in windows (see `windows`), so a score does not depend on the number of
workers. In a window each image is encoded once, and goes through the language model once, however
many captions it has (see `prefix_tree`); images of conversations with several are kept for later
windows. Rows with images and rows without are sorted by length and batched by a token budget;
logits are the model's own, but of scored positions only, a few megabytes at a time. A micro-batch
that runs out of memory is halved.
When a model is opened, `models.selfcheck` finds the fastest way that scores as its plain forward
pass does; families that cannot share a row or a batch are scored in a slower way, or refused.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError, DataError
from consomme.engines.guided_logits import guided_logits
from consomme.engines.memory import batch_by_budget, halve_on_oom
from consomme.engines.scoring.logits import PositionLogits
from consomme.engines.scoring.prefix_tree import (
    PrefixLimits,
    PrefixTree,
    TreeBatch,
    batch_trees,
    build_trees,
)
from consomme.engines.scoring.requests import (
    EncodedConversation,
    NotScored,
    Score,
    ScoringLimits,
    ScoringRequest,
    to_score,
)
from consomme.engines.scoring.vision_cache import VisionFeatureCache
from consomme.engines.scoring.ways import LOST, PADDED, SHARED, SINGLE, prefix_limits
from consomme.engines.scoring.windows import WindowReader, has_several, keep_last, prefetch
from consomme.models import selfcheck
from consomme.models.adapters import merge_adapter, open_adapter
from consomme.models.attention import (
    ANY_LENGTH,
    longest_alike,
    max_positions,
    num_selected,
    windows,
)
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.encoded import Pixels
from consomme.models.selfcheck import SelfCheck
from consomme.models.weights import load_tensors, open_model

# Shapes: B rows, T token positions, S scored tokens of all rows, V vocabulary.

_LOG = logging.getLogger(__name__)

TokenNll = Callable[[Tensor, Tensor], Tensor]


class TransformersScorer:
    """Holds one model and scores conversations about images."""

    def __init__(
        self,
        model_path: str | Path,
        token_nll: TokenNll,
        *,
        token_budget: int | None = None,
        max_caption_tokens: int = 256,
        truncates: bool = False,
        threads: int = 1,
        dtype: str = "auto",
        adapter: str | None = None,
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model and check it against its plain forward pass.

        Args:
            model_path: Hugging Face folder.
            token_nll: (logits_SV, labels_S) -> nats (S,); `consomme.curate.perplexity.token_nll`.
            token_budget: Padded tokens per micro-batch; bounds memory. None takes the fastest:
                1,024 on a CPU, whose caches hold no more, and 16,384 on a GPU.
            max_caption_tokens: Conversations with more labelled tokens are not scored.
            truncates: Score the first `max_caption_tokens` of longer ones instead.
            threads: torch threads of this process.
            dtype: Of the weights: `float32`, `bfloat16`, `float16`, or `auto`, which is bfloat16 on
                a GPU and float32 on a CPU.
            adapter: Folder of a LoRA in PEFT's format, merged into the weights.
            model_hash: Of the content of the folder, from `model_content_hash`, and of the adapter;
                the result of the check is cached under it. None checks every time.
            template: Options of the chat template.

        Raises:
            CheckpointError: There is no such model, it takes no conversation, its family does not
                support what scoring needs, or no way of scoring has the numbers of its plain
                forward pass.
        """
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        with selfcheck.family_faults(f"cannot open the model at {model_path}"):
            self.model, processor = open_model(model_path, getattr(torch, dtype))
            if adapter is not None:
                merge_adapter(self.model, open_adapter(adapter))
            self.model.to(self.device)
        family = self.model.config.model_type
        with selfcheck.family_faults(f"cannot score with this {family} model"):
            self.chat = chat_encoder_for(self.model.config, processor, template)
        self.token_nll = token_nll
        self.token_budget = token_budget or (16_384 if self.device.type == "cuda" else 1_024)
        self._accepted = selfcheck.accepted_inputs(self.model)
        self.vision_cache, no_cache = self._make_vision_cache()
        text = self.model.config.get_text_config()
        self.limits = ScoringLimits(
            max_caption_tokens=max_caption_tokens,
            truncates=truncates,
            max_positions=max_positions(self.model.config),
        )
        self._rope_index = getattr(self.model.base_model, "get_rope_index", None)
        if self._rope_index:
            self._rope_args = frozenset(inspect.signature(self._rope_index).parameters)
        limits = prefix_limits(self.model)
        self.prefix_limits = limits if isinstance(limits, PrefixLimits) else None
        not_tried = {SHARED: limits} if isinstance(limits, str) else {}
        if no_cache:
            not_tried |= {SHARED: no_cache, PADDED: no_cache}
        self._logits = PositionLogits(self.model, max(16, (1 << 24) // max(1, text.vocab_size)))
        self._max_batched = ANY_LENGTH
        self._model_hash = model_hash
        self._several: SelfCheck | str | None = None
        self.check = self._find_way(not_tried, model_hash)
        self.way = self.check.way
        _LOG.info("%s", self.check.line())

    def _make_vision_cache(self) -> tuple[VisionFeatureCache | None, str]:
        """Return a cache of image features; or None, and why a VLM has none."""
        if not self.chat.has_vision:
            return None, ""
        try:
            # A thousand numbers of an image are roughly as much work as one token.
            return VisionFeatureCache(self.model, self.token_budget * 1024), ""
        except CheckpointError as error:
            return None, str(error)

    def _find_way(self, not_tried: dict[str, str], model_hash: str | None) -> selfcheck.SelfCheck:
        """Return the cached result of the self-check, or run it."""
        sizes = [size for size in windows(self.model.config.get_text_config())]
        costly = [size for size in sizes if size > 2 * self.token_budget]
        sizes = [size for size in sizes if size < self.limits.max_positions]
        not_checked: dict[str, str] = {}
        alike = longest_alike(self.model.config.get_text_config())
        if alike is not None:
            self._max_batched = alike
            not_checked[f"a batch with positions beyond {alike}"] = "longer rows run one at a time"
        if any(size in sizes for size in costly):
            self._max_batched = min(self._max_batched, *costly)
            not_checked[f"attention beyond {min(costly)} tokens"] = "longer rows run one at a time"
        selected = num_selected(self.model.config.get_text_config())
        if selected is not None and selected < self.limits.max_positions:
            self._max_batched = min(self._max_batched, selected)
            not_checked[f"attention to {selected} chosen tokens"] = "longer rows run one at a time"
        settings = {"costly": costly, "template": getattr(self.chat, "template_options", {})}
        affordable = [size for size in sizes if size not in costly]
        return selfcheck.cached_check(
            self.model,
            "scoring",
            model_hash,
            settings,
            LOST,
            lambda: self._check(affordable, not_tried, not_checked),
        )

    def _check(
        self,
        affordable: Sequence[int],
        not_tried: Mapping[str, str],
        not_checked: Mapping[str, str],
    ) -> selfcheck.SelfCheck:
        """Run the self-check.

        Args:
            affordable: Windows of attention that a row is longer than.
            not_tried: Ways that are not tried, and why.
            not_checked: What is too costly to check.
        """
        family = self.model.config.model_type
        probes = selfcheck.make_probes(has_vision=self.chat.has_vision)
        with selfcheck.family_faults(f"cannot score with this {family} model"):
            if affordable:
                probes.append(selfcheck.make_long_probe(self.chat, max(affordable)))
        rows = selfcheck.encode_probes(self.chat, probes)
        with selfcheck.family_faults(f"the plain forward pass of this {family} model fails"):
            plain = [selfcheck.plain_nll(self.model, row) for row in rows]
            tolerance = selfcheck.find_tolerance(self.model, rows, plain)
            selfcheck.check_causal(self.model, rows, plain)
        conversations = [
            EncodedConversation(chat=row, image_keys=probe.image_keys)
            for row, probe in zip(rows, probes, strict=True)
        ]
        ways = {
            way: lambda way=way: self._probe_nlls(way, conversations)
            for way in (SHARED, PADDED, SINGLE)
            if way not in not_tried
        }
        names = [probe.name for probe in probes]
        return selfcheck.choose_way(
            "scoring",
            ways,
            names,
            plain,
            tolerance,
            LOST,
            family,
            failed=not_tried,
            not_checked=not_checked,
        )

    def _way_of_several(self) -> str:
        """Return the way of conversations with several images, or with one in a later turn."""
        return (
            SINGLE
            if self._several is None or isinstance(self._several, str)
            else (self._several.way)
        )

    @property
    def _refused_several(self) -> str:
        """Why the model takes no several images; empty if it does, or is not asked to."""
        return self._several if isinstance(self._several, str) else ""

    def _check_several(self) -> None:
        """Check conversations with several images, once; their way may be a slower one."""
        if self._several is not None:
            return
        kind = "scoring of several images"
        try:
            self._several = selfcheck.cached_check(
                self.model,
                kind,
                self._model_hash,
                {"way": self.way, "template": getattr(self.chat, "template_options", {})},
                LOST,
                lambda: self._run_check_of_several(kind),
            )
        except CheckpointError as error:
            self._several = str(error)
            _LOG.warning("%s", error)
        else:
            _LOG.info("%s", self._several.line())

    def _run_check_of_several(self, kind: str) -> selfcheck.SelfCheck:
        """Run the check.

        Raises:
            CheckpointError: The family takes one image only, or no way has its own numbers.
        """
        family = self.model.config.model_type
        probes, rows = [], []
        refused = ""
        for probe in selfcheck.make_image_probes():
            try:
                rows.append(self.chat.encode(probe.turns, probe.images, probe.image_keys))
            except DataError as error:
                # Samples of this shape are rejected one by one.
                refused = refused or f"{probe.name}: {error}"
                continue
            probes.append(probe)
        if not any(len(probe.images) > 1 for probe in probes):
            raise CheckpointError(f"this {family} model takes one image only: {refused}")
        with selfcheck.family_faults(f"this {family} model does not take several images"):
            plain = [selfcheck.plain_nll(self.model, row) for row in rows]
        conversations = [
            EncodedConversation(chat=row, image_keys=probe.image_keys)
            for row, probe in zip(rows, probes, strict=True)
        ]
        is_apart = all(row.images for row in rows)
        ways = dict.fromkeys([self.way, SINGLE] if is_apart else [SINGLE])
        not_tried = {} if is_apart else {self.way: "the family prepares several images together"}

        def run(way: str) -> list[Tensor]:
            self._several = dataclasses.replace(self.check, way=way)
            try:
                return self._probe_nlls(self.way, conversations)
            finally:
                self._several = None

        return selfcheck.choose_way(
            kind,
            {way: partial(run, way) for way in ways},
            [probe.name for probe in probes],
            plain,
            selfcheck.find_tolerance(self.model, rows, plain),
            LOST,
            family,
            failed=not_tried if self.way != SINGLE else {},
        )

    @torch.inference_mode()
    def _probe_nlls(self, way: str, conversations: Sequence[EncodedConversation]) -> list[Tensor]:
        """Score the probes of the self-check, as many in one batch as can be."""
        settings = self.token_nll, self.token_budget
        lengths = sorted(len(one.chat.input_ids) for one in conversations)
        self.token_nll, self.way = _exact_nll, way
        self.token_budget = max(len(lengths) * lengths[-2], 2 * lengths[-1])
        try:
            images = {
                key: pixels.to(self.model.dtype)
                for one in conversations
                for key, pixels in zip(one.image_keys, one.chat.images, strict=False)
            }
            return self._token_nlls(conversations, self._features(images))
        finally:
            self.token_nll, self.token_budget = settings

    def _features(self, images: dict[object, Pixels]) -> dict[object, list[Tensor]]:
        """Encode each image once, unless rows run one at a time."""
        if self.vision_cache is None or self.way == SINGLE:
            return {}
        return self.vision_cache.encode(images)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the model's weights by others of the same architecture, in place.

        Args:
            weights: By the names of a checkpoint folder's tensors.
        """
        load_tensors(self.model, weights)

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoringRequest]) -> list[Score | NotScored]:
        """Score each conversation.

        Returns:
            Aligned with `requests`: a `Score`, or why there is none.
        """
        results: dict[int, Score | NotScored] = {}
        if self.chat.has_vision and any(has_several(one) for one in requests):
            self._check_several()
        kept: dict[object, list[Tensor]] = {}
        reads = WindowReader(self.chat, self.limits, self.model.dtype, self._refused_several)
        for window in prefetch(reads.windows(requests, results)):
            new = {key: one for key, one in window.shared.items() if key not in kept}
            found = self._features(window.images | new)
            features = kept | found
            keep_last(kept, {key: features[key] for key in window.shared if key in features})
            nlls = iter(self._token_nlls(window.conversations, features))
            for index, encoded in window.requests:
                results[index] = to_score(encoded, [next(nlls) for _ in encoded.conversations])
        return [results[index] for index in range(len(requests))]

    def _token_nlls(
        self, conversations: Sequence[EncodedConversation], features: dict[object, list[Tensor]]
    ) -> list[Tensor]:
        """Run conversations through the language model.

        Returns:
            For each conversation the nll of its scored tokens (S,), on the CPU.
        """
        if self.way == SINGLE:
            return [self._nll_alone(one) for one in conversations]
        limits = self.prefix_limits if self.way == SHARED else None
        nlls: dict[int, Tensor] = {}
        trees = []
        for tree in build_trees(conversations, limits):
            indices = [index for suffix in tree.suffixes for index in suffix.indices]
            chat = conversations[indices[0]].chat
            is_apart = len(tree.image_keys) > 1 or tree.has_late_images
            runs_alone = is_apart and (not chat.images or self._way_of_several() == SINGLE)
            if len(tree) > self._max_batched or runs_alone:
                nlls |= {index: self._nll_alone(conversations[index]) for index in indices}
            else:
                trees.append(tree)
        trees.sort(key=lambda tree: (len(tree), tree.suffixes[0].ids, tree.suffixes[0].indices))
        groups = [trees]
        if limits is not None and limits.window is not None:
            # A mask of our own has no windows, so single rows, which may be longer, go apart.
            groups = [[t for t in trees if t.is_single is kind] for kind in (True, False)]
        elif any(tree.has_late_images for tree in trees):
            # Positions of images in a suffix are the family's own, so no others may be given.
            groups = [[t for t in trees if t.has_late_images is kind] for kind in (False, True)]
        for group in _by_guidance(groups):
            for batch in batch_by_budget([len(tree) for tree in group], self.token_budget):
                batch_of_trees = [group[k] for k in batch]
                parts = halve_on_oom(
                    lambda some: self._forward(some, features), batch_of_trees, _split_tree
                )
                suffixes = [suffix for tree in batch_of_trees for suffix in tree.suffixes]
                for suffix, part in zip(suffixes, parts, strict=True):
                    nlls |= dict.fromkeys(suffix.indices, part)
        return [nlls[index] for index in range(len(conversations))]

    def _forward(
        self, trees: Sequence[PrefixTree], features: dict[object, list[Tensor]]
    ) -> list[Tensor]:
        """Return the nll of the scored tokens, (S,) float32 on the CPU, suffix by suffix."""
        batch = self._batch(trees)
        passes = [self._tree_inputs(trees, batch, features)]
        masked = trees[0].masked
        if masked is not None:
            branch = [tree.masked_branch() for tree in trees]
            passes.append(self._tree_inputs(branch, self._batch(branch), features))
        alpha = masked.alpha if masked else 0.0
        nll_S = self._nll(passes, batch.rows, batch.predictors, batch.labels, alpha)
        return list(torch.split(nll_S, batch.counts))

    def _batch(self, trees: Sequence[PrefixTree]) -> TreeBatch:
        return batch_trees(trees, self._image_positions if self._rope_index else None)

    def _tree_inputs(
        self,
        trees: Sequence[PrefixTree],
        batch: TreeBatch,
        features: dict[object, list[Tensor]],
    ) -> dict[str, Any]:
        """Return the inputs of `forward` of a batch."""
        inputs: dict[str, Any] = {"input_ids": batch.ids_BT, "attention_mask": batch.mask}
        if batch.positions is not None:
            inputs["position_ids"] = batch.positions
            inputs["attention_mask"] = batch.mask.to(self.model.dtype)
        inputs |= {n: v for n, v in batch.token_inputs.items() if n in self._accepted}
        images = [pixels for tree in trees for pixels in tree.images]
        if self.vision_cache and images:
            inputs |= self.vision_cache.other_inputs(images)
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if self.vision_cache and images:
            keys = [key for tree in trees for key in tree.image_keys]
            inputs["mm_encoder_outputs"] = {
                "image": self.vision_cache.join([features[key] for key in keys])
            }
        return inputs

    def _nll_alone(self, conversation: EncodedConversation) -> Tensor:
        """Return the nll (S,) of the scored tokens of one conversation by its plain forward."""
        chat, masked = conversation.chat, conversation.masked
        scored = [t for begin, end in chat.spans for t in range(begin, end)]
        labels = [chat.input_ids[t] for t in scored]
        passes = [selfcheck.plain_inputs(self.model, chat)]
        if masked is not None:
            passes.append(selfcheck.plain_inputs(self.model, masked.chat))
        alpha = masked.alpha if masked else 0.0
        return self._nll(passes, [0] * len(scored), [t - 1 for t in scored], labels, alpha)

    def _nll(
        self,
        passes: Sequence[dict[str, Any]],
        rows: Sequence[int],
        predictors: Sequence[int],
        labels: Sequence[int],
        alpha: float,
    ) -> Tensor:
        """Return the nll of scored tokens, (S,) float32 on the CPU.

        Args:
            passes: Inputs of `forward`; under guidance also those with masked images.
            rows: Row of each scored token.
            predictors: Position of the token that predicts it.
            labels: Its id.
            alpha: Strength of the guidance.
        """
        rows_S = torch.tensor(rows, device=self.device)
        predictors_S = torch.tensor(predictors, device=self.device)
        labels_S = torch.tensor(labels, device=self.device)
        nlls, begin = [], 0
        branches = (self._logits(inputs, rows_S, predictors_S) for inputs in passes)
        for chunks in zip(*branches, strict=True):
            logits_SV = chunks[0]
            for masked_SV in chunks[1:]:
                logits_SV = guided_logits(logits_SV, masked_SV, alpha)
            end = begin + len(logits_SV)
            nlls.append(self.token_nll(logits_SV, labels_S[begin:end]))
            begin = end
        return torch.cat(nlls).float().cpu()

    def _image_positions(self, tree: PrefixTree) -> Tensor:
        """Return the multimodal RoPE positions (3, prefix length) of a prefix with images."""
        assert self.vision_cache is not None
        image_inputs = self.vision_cache.other_inputs(tree.images)
        inputs = {name: value for name, value in image_inputs.items() if name in self._rope_args}
        assert self._rope_index is not None
        positions, _ = self._rope_index(
            input_ids=torch.tensor([tree.ids]),
            mm_token_type_ids=torch.tensor([tree.types]),
            attention_mask=torch.ones((1, len(tree.ids)), dtype=torch.long),
            **inputs,
        )
        of_prefix: Tensor = positions[:, 0].cpu()
        return of_prefix


def _by_guidance(groups: Sequence[Sequence[PrefixTree]]) -> Iterator[list[PrefixTree]]:
    """Divide groups of trees by the strength of their guidance; their order stays."""
    for group in groups:
        alphas = [tree.masked and tree.masked.alpha for tree in group]
        for alpha in dict.fromkeys(alphas):
            yield [tree for tree, one in zip(group, alphas, strict=True) if one == alpha]


def _exact_nll(logits_SV: Tensor, labels_S: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits_SV.float(), labels_S, reduction="none")


def _split_tree(tree: PrefixTree) -> list[PrefixTree]:
    return [] if tree.is_single else tree.halves()

"""Run a model's own processor on a conversation: tokens, inputs of tokens, and pixels.

What the processor gives is taken as it is, for any family: its tokens are recorded as it makes
them, its outputs are divided into those of tokens and those of images, and what it says about an
image that it does not take is the reason of a reject.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import OutOfMemoryError, Tensor, int64, tensor, zeros

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import ImageRef, Turn
from consomme.models.encoded import ImageRefusedError, Pixels
from consomme.models.recording import (
    NUM_CACHED_IMAGES,
    CachedImageProcessor,
    RecordingTokenizer,
)

_TEXT_INPUTS = {"input_ids", "attention_mask", "labels"}
"""Inputs that are built for every model."""


IMAGE_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What processors raise about an image: Qwen's at extreme shapes, torchvision's at no pixels. That
a processor takes images at all is tried when a model is opened (`chat_check`)."""


@contextlib.contextmanager
def image_errors(images: Sequence[Image.Image]) -> Iterator[None]:
    """Raise what a processor raises about images as `ImageRefusedError`.

    Raises:
        ImageRefusedError: The processor raised, as Qwen's do at extreme shapes; or an image has no
            pixels, which some processors accept.
    """
    for image in images:
        if not (image.width and image.height):
            raise ImageRefusedError(f"an image of {image.width} x {image.height} has no pixels")
    try:
        yield
    except OutOfMemoryError:
        raise
    except IMAGE_FAULTS as error:
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        what = "an image" if len(images) == 1 else f"{len(images)} images"
        raise ImageRefusedError(
            f"the model's processor does not take {what} of {sizes}: {error}"
        ) from error


class ConversationProcessor:
    """The processor of one model, or its tokenizer if it has no vision encoder."""

    def __init__(self, config: Any, processor: Any, marker: Callable[[], str]) -> None:
        """Wrap a processor.

        Args:
            config: Gives the id of the image token.
            processor: A processor; or a tokenizer, for a model without a vision encoder.
            marker: Returns what the chat template writes for an image; empty for nothing.

        Raises:
            CheckpointError: The model has no image token.
        """
        self.has_vision = hasattr(processor, "image_processor")
        self.tokenizer = processor.tokenizer if self.has_vision else processor
        # BLIP-2's is a token object.
        self.image_token = str(getattr(processor, "image_token", None) or "")
        self.recorder = RecordingTokenizer(self.tokenizer)
        self._marker = marker
        self._alone: dict[object, Pixels] = {}
        if self.has_vision:
            self.image_processor = CachedImageProcessor(processor.image_processor)
            self._processor = copy.copy(processor)
            self._processor.tokenizer = self.recorder
            self._processor.image_processor = self.image_processor
            self.image_token_id = _image_token_id(config, processor)
        self._nests_images = True
        self._zero_inputs: tuple[str, ...] | None = None
        self._needs_processor = False

    def process(
        self,
        rendered: str,
        turns: Sequence[Turn],
        images: Sequence[Image.Image],
        keys: Sequence[object] | None,
        *,
        expands_images: bool = True,
        image_options: Mapping[str, Any] | None = None,
    ) -> tuple[list[int], dict[str, Tensor], Pixels | None]:
        """Tokenize a text and prepare its images; `self.recorder` holds the tokens.

        Without `expands_images` the text is tokenized as it is, with the marks of its images.
        `image_options` are the image processor's; images with keys are kept whatever they are, so
        keys have to name them too.

        Returns:
            Token types, all inputs with a value for each token, and the images.
        """
        special = not self.starts_with_bos(rendered)
        order = [index for turn in turns for index in turn.image_indices]
        if not order:
            return self._without_image(rendered, special)
        if not expands_images:
            self.recorder([rendered], add_special_tokens=special)
            return [0] * len(self.recorder.ids), {}, None
        shown = [images[index] for index in order]
        self.image_processor.keys = [None if keys is None else keys[index] for index in order]
        try:
            with image_errors(shown), self.image_processor.set_to(image_options or {}):
                output = self._with_images(rendered, shown, special)
        except Exception as error:
            self.check_shows_image(rendered, error)
            raise
        self._check_ids(output)
        token_inputs, inputs = self._divide(output)
        num_tokens = sum(token == self.image_token_id for token in self.recorder.ids)
        if not num_tokens:
            self.check_shows_image(rendered)
            raise DataError(
                f"the model's processor writes no image token: found none of id"
                f" {self.image_token_id} in {self.recorder.text[:120]!r}; a model of this family"
                " would not see the image, so use another family"
            )
        types = self._token_types(token_inputs)
        return types, token_inputs, Pixels(inputs=inputs, num_tokens=num_tokens)

    def images_alone(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image],
        keys: Sequence[object] | None,
        pixels: Pixels | None,
        mark: str,
    ) -> tuple[Pixels, ...]:
        """Return each image as it is prepared alone; none if the family prepares them otherwise.

        Args:
            turns: With references to the images.
            images: Of the conversation.
            keys: Name the images; None gives none.
            pixels: All images, prepared together.
            mark: Of an image in a text.
        """
        order = [index for turn in turns for index in turn.image_indices]
        if pixels is None or keys is None:
            return ()
        if len(order) == 1:
            return (pixels,)
        recorded = self.recorder.state
        try:
            alone = tuple(self._image_alone(images[index], keys[index], mark) for index in order)
        finally:
            self.recorder.state = recorded
        if sum(one.num_tokens for one in alone) != pixels.num_tokens:
            return ()
        return alone

    def _image_alone(self, image: Image.Image, key: object, mark: str) -> Pixels:
        """Prepare one image with nothing but its mark for a text."""
        if key is not None and key in self._alone:
            return self._alone[key]
        place = [Turn(role="user", content=(ImageRef(0),))]
        _, _, pixels = self.process(mark, place, [image], [key])
        assert pixels is not None
        if key is not None:
            while len(self._alone) >= NUM_CACHED_IMAGES:
                self._alone.pop(next(iter(self._alone)))
            self._alone[key] = pixels
        return pixels

    def _without_image(
        self, rendered: str, special: bool
    ) -> tuple[list[int], dict[str, Tensor], None]:
        """Tokenize a text as the processor does, without calling it where that makes no difference.

        A processor takes several times as long as its tokenizer.
        """
        if self.has_vision and self._zero_inputs is None:
            self._zero_inputs, self._needs_processor = self._inputs_without_image()
        if self._needs_processor:
            output = self._processor(
                text=[rendered], add_special_tokens=special, return_tensors="pt"
            )
            self._check_ids(output)
            token_inputs, _ = self._divide(output)
        else:
            output = self.recorder([rendered], add_special_tokens=special)
            token_inputs = {n: tensor(v[0]) for n, v in output.items() if n not in _TEXT_INPUTS}
        length = len(self.recorder.ids)
        for name in self._zero_inputs or ():
            token_inputs.setdefault(name, zeros(length, dtype=int64))
        return [0] * length, token_inputs, None

    def _with_images(
        self, rendered: str, images: Sequence[Image.Image], special: bool
    ) -> Mapping[str, Any]:
        """Call the processor with images; most take a list of them for each text."""
        options = {"add_special_tokens": special, "return_tensors": "pt"}
        forms: list[Any] = [[list(images)], list(images)] if self._nests_images else [list(images)]
        try:
            output: Mapping[str, Any] = self._processor(text=[rendered], images=forms[0], **options)
        except IMAGE_FAULTS:
            if len(forms) == 1:
                raise
            try:
                output = self._processor(text=[rendered], images=forms[1], **options)
            except IMAGE_FAULTS:
                output = {}
            if not output:
                raise
            self._nests_images = False
        return output

    def _check_ids(self, output: Mapping[str, Any]) -> None:
        """Check that a processor's tokens are those that its tokenizer made of one text.

        Some families put tokens together afterwards, as BLIP-2, Kosmos-2 and Fuyu do for images;
        which of them are the answer's cannot be told from the text then.
        """
        found = output.get("input_ids")
        ids = found[0] if found is not None else None
        if ids is None or [int(token) for token in ids] != self.recorder.ids:
            raise DataError(
                "the processor of this family changes the tokens of a conversation after its"
                f" tokenizer: found {0 if ids is None else len(ids)} tokens, expected the"
                f" {len(self.recorder.ids)} of its text, so which ones are the answer's cannot be"
                " told; use another family"
            )

    def _divide(self, output: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Divide what a processor returned into inputs of tokens (T, ...), and of images.

        An input belongs to tokens if it is not from the image processor and is as long as the text.
        """
        of_images = self.image_processor.names if self.has_vision else frozenset()
        token_inputs, inputs = {}, {}
        for name, value in output.items():
            if name in _TEXT_INPUTS:
                continue
            is_of_tokens = (
                name not in of_images
                and isinstance(value, Tensor)
                and tuple(value.shape[:2]) == (1, len(self.recorder.ids))
            )
            if is_of_tokens:
                token_inputs[name] = value[0]
            else:
                inputs[name] = value
        return token_inputs, inputs

    def _inputs_without_image(self) -> tuple[tuple[str, ...], bool]:
        """Return what the processor adds to the tokens of a text without an image.

        Returns:
            Names of inputs of tokens that are zero; and whether there is more, so that only the
            processor can prepare texts: it changes them, as Llama 3.2's does, or has other inputs.
        """
        try:
            output = self._processor(text=["a"], add_special_tokens=False, return_tensors="pt")
        except IMAGE_FAULTS:
            # It takes no text without an image.
            return (), False
        token_inputs, others = self._divide(output)
        names = tuple(name for name, value in token_inputs.items() if not value.any())
        has_more = bool(others) or len(names) < len(token_inputs) or self.recorder.text != "a"
        return names, has_more

    def check_shows_image(self, rendered: str, error: Exception | None = None) -> None:
        """Refuse a template that writes nothing for an image, and say what the processor said."""
        if self.image_token not in rendered and not self._marker():
            said = f" (the processor fails: {error})" if error else ""
            raise CheckpointError(
                f"the chat template drops the image: found no {self.image_token!r} in"
                f" {rendered[:120]!r}{said}; change chat_template.jinja beside the model, so that"
                " it writes content of type image as this token"
            ) from error

    def starts_with_bos(self, rendered: str) -> bool:
        """Return whether the template itself writes the token that begins a text."""
        begin = self.tokenizer.bos_token
        return bool(begin) and rendered.startswith(begin)

    def _token_types(self, token_inputs: Mapping[str, Tensor]) -> list[int]:
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in token_inputs:
                types: list[int] = token_inputs[name].tolist()
                return types
        return [int(token == self.image_token_id) for token in self.recorder.ids]


def _image_token_id(config: Any, processor: Any) -> int:
    """Return the id of the token that stands for an image's features in the text."""
    # In Gemma 3, the processor's image token is the one that begins an image.
    for owner, name in (
        (config, "image_token_id"),
        (config, "image_token_index"),
        (processor, "image_token_id"),
    ):
        found = getattr(owner, name, None)
        if isinstance(found, int):
            return found
    raise CheckpointError(
        f"config.json of this {getattr(config, 'model_type', '')} model names no image token: found"
        " neither image_token_id nor image_token_index, so consomme cannot know which tokens stand"
        " for an image; use another family"
    )

"""Make characters visible that change how text around them is shown, without being seen."""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "["
    # C0 and C1 controls, which terminals obey; not tab and newline.
    "\x00-\x08\x0b-\x1f\x7f-\x9f"
    # Marks, embeddings, overrides and isolates of the direction of writing.
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    # Breaks that are none in the source, and tags that spell hidden text.
    "\u2028\u2029\U000e0000-\U000e007f"
    "]"
)


def visible(text: str) -> str:
    """Replace such characters by their code, as in `⟨U+202E⟩`; all other text stays as it is.

    A caption may hold them to show another text in a report than the one that is trained on.
    """
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)

"""The members of a tar that make one sample: what their names say."""

import re
from dataclasses import dataclass, field

from consomme.storage.image_folder import IMAGE_EXTENSIONS, TEXT_EXTENSIONS
from consomme.storage.readers.tar import Member

VIDEO_EXTENSIONS = frozenset("avi flv m4v mkv mov mp4 mpeg mpg ogv ts webm wmv".split())
"""Extensions of video members, which are not read."""

NUMBERED = re.compile(r"(?:image|img|frame)?[-_]?(\d{1,6})\.[^.]+$")
"""Extension of one image of several."""

OWN_KEY = "consomme"
"""Key of the JSON member for a sample's own names, if they differ from those in the tar."""


@dataclass
class MemberGroup:
    """The members of one sample."""

    key: str
    """Name of the members up to the first dot; empty for a damaged range."""

    offset: int
    """Offset of the first header."""

    end: int
    """Offset of the next sample."""

    members: dict[str, Member] = field(default_factory=dict)
    """Members by extension in lower case."""

    problem: tuple[str, str] | None = None
    """Reason and detail of the first problem, in the order of the bytes."""

    is_damaged: bool = False
    """Whether a damaged range is part of it."""

    is_large: bool = False
    """Whether its headers state more bytes than are read, so that members may be missing."""

    read_end: int | None = None
    """Offset up to which it is read, if not `end`: less for an oversized sample, one byte more if
    no header follows; see `tar.iter_members`."""

    @property
    def images(self) -> list[str]:
        """Extensions of the image members."""
        return [name for name in self.members if name.rpartition(".")[2] in IMAGE_EXTENSIONS]

    @property
    def has_text(self) -> bool:
        """Whether it has a member that may hold the text."""
        return any(name.rpartition(".")[2] in (*TEXT_EXTENSIONS, "json") for name in self.members)

    @property
    def is_complete(self) -> bool:
        """Whether it has an image, and a member that may hold the text."""
        has_text = any(name in self.members for name in (*TEXT_EXTENSIONS, "json"))
        return bool(self.images) and has_text


def split_name(name: str) -> tuple[str, str]:
    """Split a member name into the sample's key and the extension after the first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return (folder + slash + key if key else ""), extension.lower()


JUNK = ("thumbs.db", "desktop.ini")
"""Files that Windows leaves in folders, in lower case."""


def by_last_dot(group: MemberGroup) -> dict[str, list[str]] | None:
    """Return the members of a group by the stems of their extensions, if each is a sample.

    In `v1.0.png`, `v1.0.txt`, `v1.1.png`, … the first dot belongs to the name: then each stem has
    one image and a text, and no member is without one. This holds for any part of the group, too.
    """
    stems: dict[str, list[str]] = {}
    for name in group.members:
        stem, dot, _ = name.rpartition(".")
        if not dot:
            return None
        stems.setdefault(stem, []).append(name)
    for names in stems.values():
        kinds = [name.rpartition(".")[2] for name in names]
        if sum(kind in IMAGE_EXTENSIONS for kind in kinds) != 1:
            return None
        if not any(kind in (*TEXT_EXTENSIONS, "json") for kind in kinds):
            return None
    return stems

"""Good tar members, and faulty ones in their place."""

import io
import struct
import tarfile
from collections.abc import Callable

from tests.support.zoo_images import good_image

END = bytes(1024)
"""The end-of-archive marker."""


def caption(key: str) -> str:
    """What a good sample says."""
    return f"a picture of {key}"


def member(
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    size: int | None = None,
    link: str = "",
    pax: dict[str, str] | None = None,
) -> bytes:
    """One member: headers, data, padding. `size` is what the header states."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(data) if size is None else size
    info.pax_headers = pax or {}
    header = info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)
    return header + data + bytes(-len(data) % 512)


def pair(key: str, text: bytes | None = None) -> bytes:
    """A good sample: picture and caption; `text` is another caption."""
    said = caption(key).encode() if text is None else text
    return member(f"{key}.png", good_image(key)) + member(f"{key}.txt", said)


def with_json(key: str, text: bytes) -> bytes:
    """A good sample with this text in its `.json` member."""
    return pair(key) + member(f"{key}.json", text)


def patched(block: bytes, offset: int, value: bytes) -> bytes:
    """A header with other bytes in it and a right checksum."""
    header = bytearray(block[:512])
    header[offset : offset + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + block[512:]


def stating(key: str, size: bytes) -> bytes:
    """A sample whose picture's header has these bytes where the size belongs."""
    return patched(member(f"{key}.png", good_image(key)), 124, size) + member(f"{key}.txt", b"x")


def behind_extension(key: str, kind: bytes, payload: bytes, size: int | None = None) -> bytes:
    """A sample whose picture has a long-name or PAX header with this payload before it."""
    return member("././@LongLink", payload, kind=kind, size=size) + pair(key)


def sparse(key: str) -> bytes:
    """A picture as an old GNU sparse file, with one more block of its map."""
    data = good_image(key)
    header = member(f"{key}.png", data, kind=tarfile.GNUTYPE_SPARSE)
    return (
        patched(header, 482, b"\1")[:512] + bytes(512) + header[512:] + member(f"{key}.txt", b"x")
    )


def sparse_pax(key: str) -> bytes:
    """A picture as a sparse file of the PAX kind: its name is in a header, its map in its data."""
    keys = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": f"{key}.png",
        "GNU.sparse.realsize": "9",
    }
    data = b"1\n0\n9\n".ljust(512, b"\0") + good_image(key)
    return member(f"GNUSparseFile.0/{key}.png", data, pax=keys) + member(f"{key}.txt", b"x")


def many_pax_lines(key: str) -> bytes:
    """A PAX header of nearly a megabyte, all of it lines that must be parsed one by one."""
    return behind_extension(key, tarfile.XHDTYPE, b"5 a=\n" * 200_000 + b"8 size=x")


Builder = Callable[[str, str], bytes]
"""From the sample's key, and that of the good sample before it, to blocks of a tar."""

BAD_MEMBERS: dict[str, tuple[str, Builder]] = {
    "no_caption": ("caption_missing", lambda key, _: member(f"{key}.png", good_image(key))),
    "no_picture": ("image_missing", lambda key, _: member(f"{key}.txt", b"x")),
    "two_pictures": (
        "record_malformed",
        lambda key, _: member(f"{key}.jpg", good_image(key)) + pair(key),
    ),
    "caption_not_utf8": ("caption_not_utf8", lambda key, _: pair(key, b"caf\xe9")),
    "caption_in_utf16": ("caption_not_utf8", lambda key, _: pair(key, "a café".encode("utf-16"))),
    "caption_in_unmarked_utf16": (
        "caption_not_text",
        lambda key, _: pair(key, "a cat".encode("utf-16-le")),
    ),
    "absolute_path": ("unsafe_path", lambda key, _: pair(f"/etc/{key}")),
    "parent_path": ("unsafe_path", lambda key, _: pair(f"a/../../{key}")),
    "nul_in_name": (
        "unsafe_path",
        lambda key, _: (
            member("././@LongLink", f"{key}\0x.png\0".encode(), kind=tarfile.GNUTYPE_LONGNAME)
            + member(f"{key}.png", good_image(key))
        ),
    ),
    "symbolic_link": (
        "record_malformed",
        lambda key, _: (
            member(f"{key}.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
            + member(f"{key}.txt", b"x")
        ),
    ),
    "hard_link": (
        "record_malformed",
        lambda key, before: (
            member(f"{key}.png", kind=tarfile.LNKTYPE, link=f"{before}.png")
            + member(f"{key}.txt", b"x")
        ),
    ),
    "device": (
        "record_malformed",
        lambda key, _: member(f"{key}.png", kind=tarfile.CHRTYPE) + member(f"{key}.txt", b"x"),
    ),
    "fifo": (
        "record_malformed",
        lambda key, _: member(f"{key}.png", kind=tarfile.FIFOTYPE) + member(f"{key}.txt", b"x"),
    ),
    "sparse_file": ("record_malformed", lambda key, _: sparse(key)),
    "sparse_file_by_pax": ("record_malformed", lambda key, _: sparse_pax(key)),
    "broken_picture_header": (
        "record_malformed",
        lambda key, _: b"\xff" * 512 + pair(key)[512:],
    ),
    "broken_checksum": (
        "record_malformed",
        lambda key, _: pair(key)[:148] + b"000000\0 " + pair(key)[156:],
    ),
    "broken_caption_header": (
        "record_malformed",
        lambda key, _: (
            member(f"{key}.png", good_image(key)) + b"<html>".ljust(512) + member("", b"x")[512:]
        ),
    ),
    "size_that_is_negative": (
        "record_malformed",
        lambda key, _: stating(key, b"\xff" * 11 + b"\xf0"),
    ),
    "size_that_is_no_number": ("record_malformed", lambda key, _: stating(key, b"octopus!    ")),
    "size_beyond_the_shard": ("record_truncated", lambda key, _: stating(key, b"00040000000\0")),
    "size_of_8_gigabytes": ("record_too_large", lambda key, _: stating(key, b"77777777777\0")),
    "size_of_a_yottabyte": (
        "record_too_large",
        lambda key, _: stating(key, b"\x80" + b"\0" + b"\x7f" * 10),
    ),
    "pax_header_of_3_megabytes": (
        "record_malformed",
        lambda key, _: (
            member(f"{key}.png", good_image(key), pax={"comment": "x" * 3_000_000})
            + member(f"{key}.txt", b"x")
        ),
    ),
    "pax_header_of_many_lines": ("record_malformed", lambda key, _: many_pax_lines(key)),
    "pax_header_that_is_none": (
        "record_malformed",
        lambda key, _: behind_extension(key, tarfile.XHDTYPE, b"999 path=x\n"),
    ),
    "pax_size_of_5000_digits": (
        "record_malformed",
        lambda key, _: behind_extension(key, tarfile.XHDTYPE, b"5011 size=" + b"9" * 5000 + b"\n"),
    ),
    "pax_header_that_states_8_gigabytes": (
        "record_malformed",
        lambda key, _: patched(
            behind_extension(key, tarfile.XHDTYPE, b"15 path=x.png\n"), 124, b"77777777777\0"
        ),
    ),
    "name_of_2_megabytes": (
        "record_malformed",
        lambda key, _: (
            member(f"{'n' * 2_000_000}.png", good_image(key)) + member(f"{key}.txt", b"x")
        ),
    ),
    "name_of_5000_letters": (
        "record_malformed",
        lambda key, _: member(f"{'n' * 5000}.png", good_image(key)) + member(f"{key}.txt", b"x"),
    ),
    "member_without_a_name": (
        "record_malformed",
        lambda key, _: member("", good_image(key)) + member(f"{key}.txt", b"x"),
    ),
    "json_is_broken": ("record_malformed", lambda key, _: with_json(key, b'{"a": ')),
    "json_has_a_key_twice": (
        "record_malformed",
        lambda key, _: with_json(key, b'{"url": "a", "url": "b"}'),
    ),
    "json_is_bottomless": ("record_malformed", lambda key, _: with_json(key, b"[" * 100_000)),
    "json_is_nested_200_deep": (
        "record_malformed",
        lambda key, _: with_json(key, b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}"),
    ),
    "json_caption_is_a_number": (
        "record_malformed",
        lambda key, _: (
            member(f"{key}.png", good_image(key)) + member(f"{key}.json", b'{"caption": 5}')
        ),
    ),
    "nobody_answers": (
        "conversation_malformed",
        lambda key, _: with_json(key, b'{"turns": [{"role": "user", "content": "what?"}]}'),
    ),
}
"""Anywhere in a tar: for each name the reason, and how its blocks are made."""

BAD_ENDS: dict[str, tuple[str, Builder]] = {
    "cut_in_a_picture": ("record_truncated", lambda key, _: pair(key)[:600]),
    "cut_in_a_caption": (
        "record_truncated",
        lambda key, _: member(f"{key}.png", good_image(key)) + member(f"{key}.txt", b"a cat")[:514],
    ),
    "cut_in_a_header": ("record_malformed", lambda key, _: pair(key)[:100]),
    "cut_in_a_long_name": (
        "record_malformed",
        lambda key, _: behind_extension(key, tarfile.GNUTYPE_LONGNAME, b"n" * 3000)[:1500],
    ),
    "cut_between_picture_and_caption": (
        "caption_missing",
        lambda key, _: member(f"{key}.png", good_image(key)),
    ),
    "no_end_marker": ("record_malformed", lambda key, _: b""),
    "web_page_at_the_end": ("record_malformed", lambda key, _: b"<html>503</html>"),
}
"""At the end of a tar, which has no end marker then."""


def huge_member(key: str, size: int) -> io.BytesIO:
    """The header of a picture of so many bytes; the bytes are left to the caller."""
    return io.BytesIO(member(f"{key}.png", size=size))


def tar_of_many_lies(number: int) -> bytes:
    """Headers alone, each stating more than the shard has; a naive reader rescans it each time."""
    return b"".join(
        patched(member(f"{index}.png"), 124, struct.pack("12s", b"00077777777\0"))
        for index in range(number)
    )

r"""Read which option of a multiple-choice question an answer text chooses.

Rules are tried in this order, on the text after the model's thoughts. The first one that finds an
option decides; if it finds several, none is read, except that the last of several stated answers
counts, since models correct themselves. A letter that is denied is not found.

| rule | text | read as |
|---|---|---|
| `alone` | `B`, `(b)`, `**B**.` | B |
| `stated` | `The answer is (B), because …`, `答案是B`, `\boxed{B}` | B |
| `line` | `B` as the first or the last line | B |
| `leading` | `B. a red star`, `(B) since …` | B |
| `text` | the text of one option, alone | its letter |
| `mentioned` | `It should be option B.` | B |
| `contained` | `It shows a red star.`, with the text of one option in it | its letter |

A letter wins over the text of another option: `B. red`, where red is A, is B.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from consomme.evaluate.metrics import normalise
from consomme.evaluate.thoughts import without_thoughts

RULES = ("alone", "stated", "line", "leading", "text", "mentioned", "contained")
"""Rules by which an option is read, in the order in which they are tried."""

FAILURES = ("empty", "several", "none")
"""Why no option is read: no text is left, several options are found, or none is."""

_WORDS = (
    r"answers?|antwort|réponse|reponse|respuesta|resposta|risposta|antwoord|svar|odpowiedź|cevap"
    r"|ответ\w*|відповідь|الإجابة|الجواب|उत्तर|đáp án|jawaban\w*|答案|正确选项|正確選項|答え"
    r"|正解|回答|정답|답|correct (?:option|choice|one)"
    r"|(?:i|we) (?:would )?(?:choose|select|pick|go with)|i think it'?s"
    r"|選擇|选择|應選|应选|故选|故選|選ぶ"
)
"""Words after which an answer is stated; lower case."""

_LINKS = (
    r"is|are|was|be|would|should|must|will|most|likely|probably|therefore|thus|hence|clearly|then"
    r"|the|option|choice|letter|number|correct|here|to|this|question|final|my"
    r"|ist|die|richtige|option|lautet|est|la|le|es|é|è|correcta|correcte|correta"
    r"|a opção|opción|opção|l'option|opzione|optie|är|jest|это|вариант|هي|هو|है|là|adalah"
    r"|应该|應該|应为|應為|是|为|為|选项|選項|选|選|は|が|選択肢|은|는|이"
)
"""Words that may stand between such a word and the letter."""

_OPENING = (
    r"[\s(\[{（【「『<*_`\"'“‘:：=\-–—>~.,，$]|\\boxed\{|\\text\{|\\mathbf\{|\\mathrm\{|\\\(|\\\["
)
_LATIN = r"A-Za-z0-9\u00c0-\u024f"
_BEGIN, _END = rf"(?<![{_LATIN}'’])", rf"(?![{_LATIN}]|['’]\w)"
"""The letter is no part of a word. Scripts that put no spaces between words may touch it."""

_NO = re.compile(
    r"(?:\b(?:not|isn['’]t|nor|never|neither|except|than|nicht|kein\w*|pas|non|no es|não é|не)\b"
    r"|不是|并非|並非|除了|ではなく|아니라)"
    r"[\s(\[*`\"'“]*(?:(?:the|option|choice|answer|letter|an?)\s+)*"
    r"(?:\w+\s+(?=[(\[]))?[(\[*`\"'“]*$",
    re.IGNORECASE,
)
"""Before a letter that is denied."""

_WRONG = re.compile(
    r"[)\]*`\"'”]*\s*(?:(?:is|are|was|can be|seems)\s+(?:\w+\s+)?(?:wrong|incorrect|false|not"
    r"|ruled|eliminated|excluded)|isn['’]t|can(?:no|['’])t|ist (?:falsch|nicht)"
    r"|不对|不正确|错误|是错)",
    re.IGNORECASE,
)
"""After such a letter."""


@dataclass(frozen=True, kw_only=True)
class ChoiceReading:
    """What an answer was read as."""

    choice: str | None
    """Letter of the option; None if none was read."""

    rule: str
    """One of `RULES`, or of `FAILURES`."""


def read_choice(answer: str, options: Mapping[str, str]) -> ChoiceReading:
    """Read which option an answer chooses.

    Args:
        answer: What the model wrote.
        options: Capital letter -> text of each option; letters may have gaps.
    """
    # Full-width letters and brackets of East Asian texts become plain ones.
    text = unicodedata.normalize("NFKC", without_thoughts(answer)).strip()
    if not text:
        return ChoiceReading(choice=None, rule="empty")
    for rule, finder in _FINDERS.items():
        found = list(dict.fromkeys(finder(text, options)))
        if rule == "stated" and found:
            found = found[-1:]
        if len(found) == 1:
            return ChoiceReading(choice=found[0], rule=rule)
        if found:
            return ChoiceReading(choice=None, rule="several")
    return ChoiceReading(choice=None, rule="none")


def _alone(text: str, options: Mapping[str, str]) -> Iterator[str]:
    """Yield the letter that is all there is."""
    bare = re.sub(r"^(?:\\boxed\{|\\text\{|[\W_])+|[\W_]+$", "", text)
    if bare.upper() in options:
        yield bare.upper()


def _line(text: str, options: Mapping[str, str]) -> Iterator[str]:
    """Yield the letter that is all of the first or the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    for line in (lines[0], lines[-1]):
        yield from _alone(line, options)


@cache
def _stated_pattern(letters: str) -> re.Pattern[str]:
    touching = "是|为|為|应该|應該|选项|選項|选|選|は|が|은|는|이"
    link = rf"(?:(?:\b(?i:{_LINKS})\b|{touching}|{_OPENING})\s*)*"
    # A small letter counts in brackets or at the end only, since `a` is a word of many languages.
    small = (
        rf"(?:[(\[]\s*(?P<small>[{letters.lower()}])\s*[)\]]|(?P<last>[{letters.lower()}])[\W_]*$)"
    )
    capital = rf"(?P<capital>[{letters}]){_END}"
    return re.compile(
        rf"(?i:\b(?:{_WORDS})|答案|正解|정답|选择|選擇|[选選]|\\boxed\{{){link}(?:{small}|{capital})"
    )


def _stated(text: str, options: Mapping[str, str]) -> Iterator[str]:
    for match in _stated_pattern("".join(options)).finditer(text):
        name = next(name for name in ("small", "last", "capital") if match[name])
        if name != "capital" or _is_named(text, match.start(name)):
            yield match[name].upper()


def _leading(text: str, options: Mapping[str, str]) -> Iterator[str]:
    letters = "".join(options)
    match = re.match(
        rf"(?:{_OPENING})*(?i:option\s+|choice\s+)?"
        rf"(?:(?P<one>[{letters}])\s*[*_`]*[.):：,，、）\]】\n-](?=\W|\D)"
        rf"|[(\[（]\s*(?P<two>[{letters}{letters.lower()}])\s*[)\]）])",
        text,
    )
    if not match:
        return
    letter = (match["one"] or match["two"]).upper()
    # `A, B and C are all right.` chooses nothing.
    others = {found for found in _capitals(text[match.end() : match.end() + 12], options)}
    if not others - {letter}:
        yield letter


def _text(text: str, options: Mapping[str, str]) -> Iterator[str]:
    said = normalise(text)
    yield from (letter for letter, option in options.items() if said and normalise(option) == said)


def _mentioned(text: str, options: Mapping[str, str]) -> Iterator[str]:
    bracketed = re.finditer(rf"[(\[]\s*([{''.join(options)}])\s*[)\]]", text)
    named = [found[1] for found in bracketed if _is_named(text, found.start(1))]
    yield from named or _capitals(text, options)


def _contained(text: str, options: Mapping[str, str]) -> Iterator[str]:
    """Yield options whose text occurs; one that lies inside another's occurrence does not count."""
    said = normalise(text)
    spans = []
    for letter, option in options.items():
        if wanted := normalise(option):
            pattern = rf"{_edge(wanted[0])}{re.escape(wanted)}{_edge(wanted[-1])}"
            spans += [(m.start(), m.end(), letter) for m in re.finditer(pattern, said)]
    for begin, end, letter in spans:
        if not any(b <= begin and end <= e and e - b > end - begin for b, e, _ in spans):
            yield letter


def _edge(character: str) -> str:
    """Words end where letters end, except in scripts that put no spaces between words."""
    return r"(?:\b)" if character.isascii() and character.isalnum() else ""


def _capitals(text: str, options: Mapping[str, str]) -> Iterator[str]:
    for match in re.finditer(rf"{_BEGIN}([{''.join(options)}]){_END}", text):
        if _is_named(text, match.start()):
            yield match[1]


def _is_named(text: str, at: int) -> bool:
    """Whether the capital there names an option: it is no article, and it is not denied."""
    is_denied = _NO.search(text[max(0, at - 40) : at]) or _WRONG.match(text, at + 1)
    return not (is_denied or _is_article(text, at))


def _is_article(text: str, at: int) -> bool:
    """Whether a capital is the English article or pronoun: a word follows that goes on with it."""
    if text[at] not in "AI":
        return False
    return bool(
        re.match(
            r" (?!(?:because|since|as|and|or|is|are|seems|looks|in|with|for|due|would|should|"
            r"correctly|best|it|that|which|therefore)\b)[a-z]",
            text[at + 1 :],
        )
    )


_FINDERS = {
    "alone": _alone,
    "stated": _stated,
    "line": _line,
    "leading": _leading,
    "text": _text,
    "mentioned": _mentioned,
    "contained": _contained,
}

"""What models say instead of a caption: that they are sorry, cannot, or are only a machine.

One decision is made here: only how a text begins counts, and an apology alone is none. "I'm sorry,
we are closed" may stand on a sign; a refusal says what the speaker cannot do or what it is. A
caption that quotes such words begins with the thing they stand on, or with a quotation mark.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class _Phrases:
    """How one language refuses; pieces of regular expressions over case-folded text."""

    sorry: str
    """Apologies; they count only with one of the other two in the same breath."""

    cannot: str
    """What the speaker is not able or willing to do, about pictures and requests."""

    machine: str
    """What the speaker is."""


_AI = r"(?:ai|ia|ki|ии|artificial intelligence)"

_PHRASES: Mapping[str, _Phrases] = {
    "en": _Phrases(
        sorry=(
            r"(?:(?:i'm|i am|we're|we are) )?(?:so |very |\w+ly )?sorry"
            r"|(?:my |our )?(?:sincere )?apologies|i apologi[sz]e|unfortunately|regrettably"
        ),
        cannot=(
            r"i ?(?:can'?t|cannot|can not|could(?:n't| not)|won't|will not"
            r"|(?:'m|am) (?:unable|not (?:able|going|comfortable|allowed|permitted)))(?: to)?"
            r" (?:\w+ly )?(?:assist|help|see\b|view|describ|identif|recogni|provid|generat|creat"
            r"|process|access|open\b|display|analy|interpret|fulfil|comply|continu|answer|comment"
            r"|respond|discuss|determin|tell\b|offer|engage|complete|do (?:that|this|so))"
            r"|i (?:do not|don't) (?:have (?:the ability|access|enough|any|information|an image)"
            r"|see (?:an?|any) (?:image|picture|photo))"
            r"|there (?:is|was|seems to be) no (?:image|picture|photo)"
            r" (?:provided|attached|uploaded|given|to describe|in your)"
            r"|(?:it (?:seems|looks|appears)(?: like| that)? )?you (?:have|did)(?: not|n't)"
            r" (?:provid|upload|attach|shar|includ)"
        ),
        machine=(
            rf"as an? (?:large |multimodal |text-based |responsible )*(?:{_AI}\b|language model"
            r"|vision model)"
            rf"|i(?:'m| am) (?:just |only )?an? (?:large |text-based )*(?:{_AI}\b|language model)"
        ),
    ),
    "de": _Phrases(
        sorry=r"(?:es )?tut mir (?:sehr |wirklich )?leid|leider|entschuldigung|ich bedauere",
        cannot=(
            r"(?:aber )?(?:ich kann|kann ich|ich darf|ich bin nicht in der lage|es ist mir nicht)\b"
            r"[^.!?]{0,60}\b(?:nicht|kein\w*|lage|möglich)"
        ),
        machine=rf"als (?:eine? )?(?:{_AI}\b|künstliche intelligenz|sprachmodell)",
    ),
    "fr": _Phrases(
        sorry=r"(?:je suis |je )?(?:vraiment |sincèrement )?(?:désolée?|m'excuse|regrette)",
        cannot=(
            r"(?:mais )?(?:je ne (?:peux|puis|suis)(?: \w+ment)? pas (?:vous )?(?:aider|voir"
            r"|décrire|identifier|fournir|générer|traiter|accéder|répondre|continuer|analyser|reconnaître"
            r"|déterminer|faire|en mesure|capable)|il m'est impossible)"
        ),
        machine=(
            rf"en tant qu(?:e |')(?:une? )?(?:{_AI}\b|intelligence artificielle|modèle de|assist)"
        ),
    ),
    "es": _Phrases(
        sorry=r"lo siento(?: mucho)?|lo lamento|perdón|disculpa|lamentablemente",
        cannot=(
            r"(?:pero )?no (?:puedo|me es posible|soy capaz)"
            r" ?(?:de )?(?:ayudar|ver|describir|identificar|proporcionar|generar|procesar|acceder"
            r"|responder|cumplir|continuar|analizar|hacer|reconocer|asistir|determinar)"
        ),
        machine=rf"como (?:una? )?(?:{_AI}\b|inteligencia artificial|modelo de len|asistente de)",
    ),
    "pt": _Phrases(
        sorry=r"(?:me )?desculpe|sinto muito|lamento|infelizmente|peço desculpas?",
        cannot=(
            r"(?:mas )?(?:eu )?não (?:posso|consigo|sou capaz)"
            r" ?(?:de )?(?:ajudar|ver|descrever|identificar|fornecer|gerar|processar|acessar|aceder"
            r"|responder|atender|continuar|analisar|fazer|reconhecer|determinar)"
        ),
        machine=rf"como (?:uma? )?(?:{_AI}\b|inteligência artificial|modelo de ling|assistente de)",
    ),
    "it": _Phrases(
        sorry=r"(?:mi )?dispiace|spiacente|mi scuso|purtroppo",
        cannot=(
            r"(?:ma )?non (?:posso|riesco a|sono in grado di)"
            r" ?(?:aiutar|veder|descriver|identificar|fornir|generar|elaborar|accedere|risponder"
            r"|soddisfar|continuar|analizzar|far|riconoscer|determinar)"
        ),
        machine=(
            rf"(?:come|in quanto) (?:un'?a? ?)?(?:{_AI}\b|intelligenza artificiale|modello ling)"
        ),
    ),
    "nl": _Phrases(
        sorry=r"(?:het )?spijt me|sorry|helaas|mijn excuses",
        cannot=(
            r"(?:maar )?(?:ik kan|kan ik|ik ben niet in staat)\b[^.!?]{0,60}\b(?:niet|geen|staat)"
        ),
        machine=rf"als (?:een )?(?:{_AI}\b|taalmodel|kunstmatige)",
    ),
    "ru": _Phrases(
        sorry=r"(?:к сожалению|извините|простите|прошу прощения|мне (?:очень )?жаль)",
        cannot=(
            r"(?:но )?я не (?:могу|в состоянии|способен|имею возможности)"
            r" ?(?:помочь|видеть|увидеть|описать|описывать|определить|предоставить|создать"
            r"|обработать|ответить|выполнить|продолжить|просмотреть|распознать|этого)"
        ),
        machine=r"(?:как|я) (?:ии\b|искусственный интеллект|языковая модель)|будучи (?:ии\b|язык)",
    ),
    "pl": _Phrases(
        sorry=r"przepraszam|niestety|przykro mi",
        cannot=r"(?:ale )?nie (?:mogę|jestem w stanie|potrafię)",
        machine=r"jako (?:ai\b|sztuczna inteligencja|model językowy)",
    ),
    "tr": _Phrases(
        sorry=r"üzgünüm|maalesef|özür dilerim",
        cannot=r"[^.!?]{0,80}(?:edemem|edemiyorum|olamam|olamıyorum|veremem|göremiyorum)",
        machine=r"bir yapay zek[aâ]|yapay zek[aâ] (?:modeli|asistanı) olarak",
    ),
    "zh": _Phrases(
        sorry=r"(?:非常|很|十分)?(?:抱歉|遗憾)|对不起|對不起|不好意思",
        cannot=(
            r"(?:但|不过|不過)?我(?:无法|無法|不能|没有办法|没办法|沒有辦法|看不到)[^。,!?]{0,6}"
            r"(?:看|描述|提供|识别|識別|回答|帮|幫|处理|處理|满足|滿足|协助|協助|生成|分析|访问|辨认|图|圖)"
        ),
        machine=r"(?:作为|身为|作為|身為)一?(?:个|個|名|款)?(?:ai|人工智能|人工智慧|语言模型|大语言模型)",
    ),
    "ja": _Phrases(
        sorry=r"(?:大変)?(?:申し訳(?:ありません|ございません|ないです)|すみません|ごめんなさい|恐れ入り)",
        cannot=r"[^。!?]{0,60}(?:できません|でき(?:兼|か)ねます|ありません|見ることができ)",
        machine=r"(?:私は)?(?:ai|人工知能|言語モデル)(?:アシスタント)?(?:として|ですので|なので)",
    ),
    "ko": _Phrases(
        sorry=r"(?:정말 )?(?:죄송(?:합니다|하지만|해요)|미안(?:합니다|하지만)|유감스럽)",
        cannot=r"[^.!?]{0,60}(?:수 없|수가 없|못합니다|불가능)",
        machine=r"(?:저는 )?(?:ai|인공지능|언어 모델)(?: 언어 모델)?(?:로서|이므로|로써)",
    ),
    "ar": _Phrases(
        sorry=r"عذر[اً]+|آسف|أعتذر|للأسف",
        cannot=r"(?:ولكن|لكن)?(?:ني)? ?(?:لا (?:أستطيع|يمكنني)|لست قادر)",
        machine=r"(?:بصفتي|كوني|باعتباري) (?:نموذج|ذكاء|مساعد)",
    ),
    "hi": _Phrases(
        sorry=r"(?:मुझे )?(?:क्षमा|माफ़?|खेद)[^।.!?]{0,12}",
        cannot=r"[^।.!?]{0,60}(?:नहीं कर सकता|नहीं कर सकती|नहीं दे सकता|असमर्थ|नहीं देख)",
        machine=r"(?:एक )?(?:एआई|ai) (?:मॉडल|भाषा मॉडल|सहायक) के रूप में",
    ),
}

_GAP = r"[^\w\"'“«「]*(?:\w[^\W_]*[^\w\"'“«「.!?。！？।]+){0,6}?"
"""A few words, no new sentence and no quotation, between an apology and what it is for."""

_NEEDS_SORRY = frozenset({"de", "nl", "pl", "tr", "ja", "ko", "ar", "hi"})
"""Languages in which the inability is told too loosely here to count without an apology."""

REFUSAL = re.compile(
    "|".join(
        rf"(?:{p.machine})"
        rf"|(?:{p.sorry})(?:[^\w\"'“«「]+)?(?:{_GAP})(?:{p.cannot}|{p.machine})"
        + ("" if language in _NEEDS_SORRY else rf"|(?:{p.cannot})")
        for language, p in _PHRASES.items()
    )
)
"""Matches at the beginning of a refusal that `folded` has prepared."""


def is_refusal(text: str) -> bool:
    """Say whether a text begins as a refusal, in one of some fifteen languages."""
    return REFUSAL.match(folded(text[:400])) is not None


def folded(text: str) -> str:
    """Bring a text's beginning into the form that the patterns are written in."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("ʼ", "'")
    return " ".join(plain.split()).lstrip("*_#> -")

"""Detection of refusals, which models give instead of a caption, in fifteen languages.

Only the beginning of a text is matched, and an apology alone is no refusal: "I'm sorry, we are
closed" may be the text of a sign. A refusal says what the speaker cannot do, or that it is an AI. A
caption that quotes such words begins with the object that carries them, or with a quotation mark.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class _Phrases:
    """Phrases of refusals in one language: regular expressions over case-folded text."""

    apology: str
    """Apologies; they count only if one of the other two follows."""

    inability: str
    """Inability or unwillingness to do something with pictures or requests."""

    identity: str
    """Self-identification as an AI."""


_AI = r"(?:ai|ia|ki|ии|artificial intelligence)"

_PHRASES: Mapping[str, _Phrases] = {
    "en": _Phrases(
        apology=(
            r"(?:(?:i'm|i am|we're|we are) )?(?:so |very |\w+ly )?sorry"
            r"|(?:my |our )?(?:sincere )?apologies|i apologi[sz]e|unfortunately|regrettably"
        ),
        inability=(
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
        identity=(
            rf"as an? (?:large |multimodal |text-based |responsible )*(?:{_AI}\b|language model"
            r"|vision model)"
            rf"|i(?:'m| am) (?:just |only )?an? (?:large |text-based )*(?:{_AI}\b|language model)"
        ),
    ),
    "de": _Phrases(
        apology=r"(?:es )?tut mir (?:sehr |wirklich )?leid|leider|entschuldigung|ich bedauere",
        inability=(
            r"(?:aber )?(?:ich kann|kann ich|ich darf|ich bin nicht in der lage|es ist mir nicht)\b"
            r"[^.!?]{0,60}\b(?:nicht|kein\w*|lage|möglich)"
        ),
        identity=rf"als (?:eine? )?(?:{_AI}\b|künstliche intelligenz|sprachmodell)",
    ),
    "fr": _Phrases(
        apology=r"(?:je suis |je )?(?:vraiment |sincèrement )?(?:désolée?|m'excuse|regrette)",
        inability=(
            r"(?:mais )?(?:je ne (?:peux|puis|suis)(?: \w+ment)? pas (?:vous )?(?:aider|voir"
            r"|décrire|identifier|fournir|générer|traiter|accéder|répondre|continuer|analyser|reconnaître"
            r"|déterminer|faire|en mesure|capable)|il m'est impossible)"
        ),
        identity=(
            rf"en tant qu(?:e |')(?:une? )?(?:{_AI}\b|intelligence artificielle|modèle de|assist)"
        ),
    ),
    "es": _Phrases(
        apology=r"lo siento(?: mucho)?|lo lamento|perdón|disculpa|lamentablemente",
        inability=(
            r"(?:pero )?no (?:puedo|me es posible|soy capaz)"
            r" ?(?:de )?(?:ayudar|ver|describir|identificar|proporcionar|generar|procesar|acceder"
            r"|responder|cumplir|continuar|analizar|hacer|reconocer|asistir|determinar)"
        ),
        identity=rf"como (?:una? )?(?:{_AI}\b|inteligencia artificial|modelo de len|asistente de)",
    ),
    "pt": _Phrases(
        apology=r"(?:me )?desculpe|sinto muito|lamento|infelizmente|peço desculpas?",
        inability=(
            r"(?:mas )?(?:eu )?não (?:posso|consigo|sou capaz)"
            r" ?(?:de )?(?:ajudar|ver|descrever|identificar|fornecer|gerar|processar|acessar|aceder"
            r"|responder|atender|continuar|analisar|fazer|reconhecer|determinar)"
        ),
        identity=(
            rf"como (?:uma? )?(?:{_AI}\b|inteligência artificial|modelo de ling|assistente de)"
        ),
    ),
    "it": _Phrases(
        apology=r"(?:mi )?dispiace|spiacente|mi scuso|purtroppo",
        inability=(
            r"(?:ma )?non (?:posso|riesco a|sono in grado di)"
            r" ?(?:aiutar|veder|descriver|identificar|fornir|generar|elaborar|accedere|risponder"
            r"|soddisfar|continuar|analizzar|far|riconoscer|determinar)"
        ),
        identity=(
            rf"(?:come|in quanto) (?:un'?a? ?)?(?:{_AI}\b|intelligenza artificiale|modello ling)"
        ),
    ),
    "nl": _Phrases(
        apology=r"(?:het )?spijt me|sorry|helaas|mijn excuses",
        inability=(
            r"(?:maar )?(?:ik kan|kan ik|ik ben niet in staat)\b[^.!?]{0,60}\b(?:niet|geen|staat)"
        ),
        identity=rf"als (?:een )?(?:{_AI}\b|taalmodel|kunstmatige)",
    ),
    "ru": _Phrases(
        apology=r"(?:к сожалению|извините|простите|прошу прощения|мне (?:очень )?жаль)",
        inability=(
            r"(?:но )?я не (?:могу|в состоянии|способен|имею возможности)"
            r" ?(?:помочь|видеть|увидеть|описать|описывать|определить|предоставить|создать"
            r"|обработать|ответить|выполнить|продолжить|просмотреть|распознать|этого)"
        ),
        identity=r"(?:как|я) (?:ии\b|искусственный интеллект|языковая модель)|будучи (?:ии\b|язык)",
    ),
    "pl": _Phrases(
        apology=r"przepraszam|niestety|przykro mi",
        inability=r"(?:ale )?nie (?:mogę|jestem w stanie|potrafię)",
        identity=r"jako (?:ai\b|sztuczna inteligencja|model językowy)",
    ),
    "tr": _Phrases(
        apology=r"üzgünüm|maalesef|özür dilerim",
        inability=r"[^.!?]{0,80}(?:edemem|edemiyorum|olamam|olamıyorum|veremem|göremiyorum)",
        identity=r"bir yapay zek[aâ]|yapay zek[aâ] (?:modeli|asistanı) olarak",
    ),
    "zh": _Phrases(
        apology=r"(?:非常|很|十分)?(?:抱歉|遗憾)|对不起|對不起|不好意思",
        inability=(
            r"(?:但|不过|不過)?我(?:无法|無法|不能|没有办法|没办法|沒有辦法|看不到)[^。,!?]{0,6}"
            r"(?:看|描述|提供|识别|識別|回答|帮|幫|处理|處理|满足|滿足|协助|協助|生成|分析|访问|辨认|图|圖)"
        ),
        identity=r"(?:作为|身为|作為|身為)一?(?:个|個|名|款)?(?:ai|人工智能|人工智慧|语言模型|大语言模型)",
    ),
    "ja": _Phrases(
        apology=r"(?:大変)?(?:申し訳(?:ありません|ございません|ないです)|すみません|ごめんなさい|恐れ入り)",
        inability=r"[^。!?]{0,60}(?:できません|でき(?:兼|か)ねます|ありません|見ることができ)",
        identity=r"(?:私は)?(?:ai|人工知能|言語モデル)(?:アシスタント)?(?:として|ですので|なので)",
    ),
    "ko": _Phrases(
        apology=r"(?:정말 )?(?:죄송(?:합니다|하지만|해요)|미안(?:합니다|하지만)|유감스럽)",
        inability=r"[^.!?]{0,60}(?:수 없|수가 없|못합니다|불가능)",
        identity=r"(?:저는 )?(?:ai|인공지능|언어 모델)(?: 언어 모델)?(?:로서|이므로|로써)",
    ),
    "ar": _Phrases(
        apology=r"عذر[اً]+|آسف|أعتذر|للأسف",
        inability=r"(?:ولكن|لكن)?(?:ني)? ?(?:لا (?:أستطيع|يمكنني)|لست قادر)",
        identity=r"(?:بصفتي|كوني|باعتباري) (?:نموذج|ذكاء|مساعد)",
    ),
    "hi": _Phrases(
        apology=r"(?:मुझे )?(?:क्षमा|माफ़?|खेद)[^।.!?]{0,12}",
        inability=r"[^।.!?]{0,60}(?:नहीं कर सकता|नहीं कर सकती|नहीं दे सकता|असमर्थ|नहीं देख)",
        identity=r"(?:एक )?(?:एआई|ai) (?:मॉडल|भाषा मॉडल|सहायक) के रूप में",
    ),
}

_GAP = r"[^\w\"'“«「]*(?:\w[^\W_]*[^\w\"'“«「.!?。！？।]+){0,6}?"
"""A few words, without a new sentence or a quotation, between an apology and its reason."""

_NEEDS_APOLOGY = frozenset({"de", "nl", "pl", "tr", "ja", "ko", "ar", "hi"})
"""Languages whose `inability` patterns are too broad to count without an apology."""

REFUSAL = re.compile(
    "|".join(
        rf"(?:{p.identity})"
        rf"|(?:{p.apology})(?:[^\w\"'“«「]+)?(?:{_GAP})(?:{p.inability}|{p.identity})"
        + ("" if language in _NEEDS_APOLOGY else rf"|(?:{p.inability})")
        for language, p in _PHRASES.items()
    )
)
"""Matches the beginning of a refusal, after `folded`."""


def is_refusal(text: str) -> bool:
    """Whether a text begins as a refusal in one of the languages."""
    return REFUSAL.match(folded(text[:400])) is not None


def folded(text: str) -> str:
    """Normalise a text for the patterns: NFKC, case, apostrophes, white space, leading markup."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("ʼ", "'")
    return " ".join(plain.split()).lstrip("*_#> -")

"""The languages of documents: which words of a text carry meaning, and their stems; for BM25, the gate and the citations.

Stems and function words are those of Qdrant Edge (Snowball's, and its own lists); where it has none for a language, all words count
as they are written. Text without spaces between words (Chinese, Japanese, Thai, ...) is cut into short runs of characters, in
any domain. BM25's vectors are made here; `rag/store.py` keeps and searches them. English for the gate and the citations is in
`rag/sentences.py`. What is said to people in their language: `rag/phrases.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rag import _edge

VERSION = 1
"""Of how words are made of a text: stored with each vector, so that those of another version are made anew."""

DEFAULT = ("en",)

# BM25's length normalisation wants the mean length of a passage in words; ours are cut at 200 tokens of MiniLM, about 150 words.
# The same figure gave the SciFact anchors of the design (avg_len 150).
AVG_LEN = 150.0
BM25_K, BM25_B = 1.2, 0.75

# ISO 639-1 -> (its name, as Edge spells it where Edge knows it; whether it has a stemmer there; and a list of function words).
_KNOWN = {
    "ar": ("Arabic", True, True), "az": ("Azerbaijani", False, True), "bg": ("Bulgarian", False, False), "bn": ("Bengali", False, True),
    "ca": ("Catalan", False, True), "cs": ("Czech", False, False), "da": ("Danish", True, True), "de": ("German", True, True),
    "el": ("Greek", True, True), "en": ("English", True, True), "es": ("Spanish", True, True), "et": ("Estonian", False, False),
    "eu": ("Basque", False, True), "fa": ("Persian", False, False), "fi": ("Finnish", True, True), "fr": ("French", True, True),
    "he": ("Hebrew", False, True), "hi": ("Hindi", False, False), "hr": ("Croatian", False, False), "hu": ("Hungarian", True, True),
    "hy": ("Armenian", True, False), "id": ("Indonesian", False, True), "it": ("Italian", True, True), "ja": ("Japanese", False, True),
    "kk": ("Kazakh", False, True), "km": ("Khmer", False, False), "ko": ("Korean", False, False), "lo": ("Lao", False, False),
    "lt": ("Lithuanian", False, False), "lv": ("Latvian", False, False), "my": ("Burmese", False, False), "nb": ("Norwegian", True, True),
    "ne": ("Nepali", False, True), "nl": ("Dutch", True, True), "nn": ("Norwegian", True, True), "no": ("Norwegian", True, True),
    "pl": ("Polish", False, False), "pt": ("Portuguese", True, True), "ro": ("Romanian", True, True), "ru": ("Russian", True, True),
    "sk": ("Slovak", False, False), "sl": ("Slovene", False, True), "sr": ("Serbian", False, False), "sv": ("Swedish", True, True),
    "ta": ("Tamil", True, False), "tg": ("Tajik", False, True), "th": ("Thai", False, False), "tr": ("Turkish", True, True),
    "uk": ("Ukrainian", False, False), "vi": ("Vietnamese", False, False), "zh": ("Chinese", False, True),
}  # fmt: skip

# Words that questions are made of, and auxiliaries, which Edge's lists lack. A word too many costs evidence.
_ASKING = {
    "de": "wann warum weshalb wieso wer wen wem wessen wieviel wieviele viel viele bitte gibt gab wurde wurden worden heißt lautet",
    "fr": "quoi quel quelle quels quelles quand où pourquoi comment combien lequel laquelle est-ce",
    "es": "cuál cuáles cuándo cuánto cuánta cuántos cuántas dónde qué quién quiénes cómo",
    "it": "quale quali quando quanto quanta quanti quante dove perché chi cosa come",
    "nl": "wanneer waarom waar wie wat welke welk hoe hoeveel",
    "pt": "qual quais quando quanto quanta quantos quantas onde quem como porque",
}

# Letters that are words, or nearly: of two and three together, one alone says too little, and a run of five is hardly found again.
_IDEOGRAMS = r"\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_HANGUL = r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_UNSPACED = r"\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
_RUN = re.compile(f"(?P<two>[{_IDEOGRAMS}{_HANGUL}]+)|(?P<three>[{_UNSPACED}]+)")
_LETTER = re.compile(f"[{_IDEOGRAMS}{_HANGUL}{_UNSPACED}]")  # looks for one four times as fast as the runs are looked for

# Scripts that tell languages of one domain apart; the others are written in Latin letters.
_SCRIPTS = {
    **dict.fromkeys(("zh", "ja"), re.compile(f"[{_IDEOGRAMS}]")),
    "ko": re.compile(f"[{_HANGUL}]"),
    **dict.fromkeys(("th", "lo", "my", "km"), re.compile(f"[{_UNSPACED}]")),
    **dict.fromkeys(("ru", "uk", "bg", "sr", "kk", "tg"), re.compile(r"[\u0400-\u052f]")),
    "el": re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]"),
    **dict.fromkeys(("ar", "fa"), re.compile(r"[\u0600-\u06ff\u0750-\u077f]")),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "hy": re.compile(r"[\u0530-\u058f]"),
    **dict.fromkeys(("hi", "ne"), re.compile(r"[\u0900-\u097f]")),
    "bn": re.compile(r"[\u0980-\u09ff]"),
    "ta": re.compile(r"[\u0b80-\u0bff]"),
}
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")

_WORD = re.compile(r"\w+")

# How much of a text is looked at to tell its language, and the share of function words that a text of a language has at least:
# English and German have 40 to 50 %, and a text of another language a tenth or more by chance ("do", "war", "die").
_LOOK, _LEAST = 1500, 0.25


def named(code: str) -> str:
    """The English name of a language, for people; its code if it is none that is known here."""
    return _KNOWN[code][0] if code in _KNOWN else code


def stamp(languages: Sequence[str]) -> str:
    """What is stored with a vector: by which languages, in which version it was made."""
    return f"{VERSION}:{'+'.join(languages or DEFAULT)}"


def stamped(text: str) -> tuple[str, ...]:
    """The languages of a `stamp`."""
    return tuple(text.partition(":")[2].split("+"))


def segmented(text: str) -> str:
    """The text with its runs of letters without spaces cut into what words are searched by; any other text as it is.

    Chinese, Japanese and Korean into all pairs of neighbours and, of the first two, single characters; Thai, Lao, Burmese and Khmer into
    threes. Pairs find as much as words from a dictionary (Nie, Gao, Zhang and Zhou, IRAL 2000: "On the use of words and n-grams for Chinese
    information retrieval"), and a question's words are cut as its document's are.
    """
    return _RUN.sub(lambda run: f" {' '.join(_cut(run))} ", text) if _LETTER.search(text) else text


def _cut(run: re.Match[str]) -> Iterable[str]:
    letters = run[0]
    size = 2 if run["two"] else 3
    if len(letters) <= size:
        yield letters
    else:
        yield from (letters[i : i + size] for i in range(len(letters) - size + 1))
    if size == 2 and len(letters) > 1:
        yield from (letter for letter in letters if not "\u1100" <= letter <= "\ud7af" or "\u2e80" <= letter <= "\u9fff")


def language_of(text: str, languages: Sequence[str]) -> str:
    """Which of the languages the text is in, by its letters and its function words; the first where it has no more of another."""
    if len(languages) < 2:
        return (languages or DEFAULT)[0]
    sample = text[:_LOOK]
    written = {code: len(_SCRIPTS.get(code, _LATIN).findall(sample)) for code in languages}
    most = max(written.values())
    fitting = [code for code in languages if written[code] == most]
    if len(fitting) == 1:
        return fitting[0]
    said = _WORD.findall(segmented(sample).lower())
    shares = {code: sum(is_function_word(word, code) for word in said) / max(1, len(said)) for code in fitting}
    best = max(fitting, key=lambda code: shares[code])
    if shares[best] < _LEAST:
        # Of a language without a list the share is always 0.
        return next((code for code in fitting if not _has_function_words(code)), fitting[0])
    return best


def document_vector(text: str, language: str) -> Any:
    """The BM25 vector of a passage (`qdrant_edge.SparseVector`)."""
    return _bm25(language).embed_document(segmented(text))


def query_vector(text: str, languages: Sequence[str]) -> Any:
    """The BM25 vector of a question over passages in these languages: weight 1 for each stem that a word has in any of them.

    Words that say nothing in the question's own language are left out: of `When did the war end`, over English and German, `war` stays.
    """
    languages = list(languages or DEFAULT)
    cut = segmented(text)
    if len(languages) == 1:
        return _bm25(languages[0]).embed_query(cut)
    asked_in = language_of(text, languages)
    rest = _WORD.sub(lambda word: " " if is_function_word(word[0].lower(), asked_in) else word[0], cut)
    found = {index for code in languages for index in _bm25(code).embed_query(rest).indices}
    return _edge.library().SparseVector(sorted(found), [1.0] * len(found))


@functools.lru_cache(maxsize=1 << 16)
def term(word: str, language: str) -> str:
    """What a word is compared by: its stem's number, as text; empty if it is a function word."""
    return "+".join(map(str, _bm25(language).embed_query(word).indices))


def is_function_word(word: str, language: str) -> bool:
    """Whether a word in small letters is on the language's list."""
    return _has_function_words(language) and not term(word, language)


def _has_function_words(language: str) -> bool:
    return language in _KNOWN and _KNOWN[language][2]


@functools.cache
def _bm25(language: str) -> Any:
    edge = _edge.library()
    if language == "en":
        return edge.Bm25(edge.Bm25Config(k=BM25_K, b=BM25_B, avg_len=AVG_LEN))
    name, stems, has_list = _KNOWN.get(language, ("", False, False))
    dropped = edge.StopwordsSet({getattr(edge.Language, name)} if has_list else set(), set(_ASKING.get(language, "").split()))
    stemmer = edge.SnowballParams(getattr(edge.SnowballLanguage, name)) if stems else edge.DisabledStemmer()
    return edge.Bm25(edge.Bm25Config(k=BM25_K, b=BM25_B, avg_len=AVG_LEN, stopwords=dropped, stemmer=stemmer))

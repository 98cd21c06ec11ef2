"""A follow-up question, made to stand alone: `And on macOS?` after `How do I install it on Debian?`. Rules, no second model.

A question that depends on nothing comes out exactly as it went in: that matters more than a good completion, since a topic that is dragged
along hides what was asked. So a sign is wanted first: a pronoun that nothing in the question explains, a sentence without a verb, no
words of its own. Then the earlier question completes it: it takes the place of what it replaces (`on Debian` -> `on macOS`), the
pronoun gets the thing that was asked about, and where neither is plain both questions stand side by side.

The rules know English. Of German, French, Spanish, Italian, Dutch and Portuguese they notice what begins like a follow-up, or is hardly
more than a question word, and put it beside the earlier question.
`rag/answer.py` searches, judges and answers with what comes out, and shows it as `searched_for`. `bench/followups.py` measures it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag.languages import language_of
from rag.records import Turn
from rag.sentences import STOP_WORDS, content_stems, sentence_spans

# An earlier question or answer counts to here: a pasted page is no topic.
_LONGEST = 300


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_COURTESY = re.compile(
    r"^(?:(?:thanks?(?:\s+you)?(?:\s+(?:a\s+lot|very\s+much|so\s+much))?|great|good|nice|ok(?:ay)?|i\s+see|right|yes|no|well|fine|perfect|now|sorry)"
    r"\s*[,.!;:]\s*)+",
    re.IGNORECASE,
)
_LED = re.compile(r"^(?:(?:and|but|or|so|then|also|plus)\b[\s,]*)+", re.IGNORECASE)
_ABOUT = re.compile(r"^(?:what|how)\s+about\s+", re.IGNORECASE)
# And, but, or, what about; and the words that ask, of which one makes a question of its own.
_OTHER = {
    "de": (
        r"und|aber|oder|(?:und\s+)?(?:was\s+ist|wie\s+(?:ist|steht|sieht)\s+es(?:\s+aus)?)\s+mit",
        r"wie|was|w[eo]r?|wo\w+|wann|wa?e?rum|welche\w?",
    ),
    "fr": (r"et|mais|ou|(?:et\s+)?qu['’]en\s+est-il", r"que|qui|quoi|quel\w*|quand|où|pourquoi|comment|combien|est-ce"),
    "es": (r"y|e|pero|o|(?:y\s+)?qué\s+(?:pasa|hay)\s+(?:con|de)", r"qué|quién\w*|cuál\w*|cuándo|dónde|cómo|cuánt\w+"),
    "it": (r"e|ma|però|oppure|o|(?:e\s+)?che\s+(?:ne\s+è|dire)\s+di", r"che|chi|qual\w+|quando|dove|perché|come|quant\w+"),
    "nl": (r"en|maar|of|(?:en\s+)?hoe\s+zit\s+het\s+met", r"wat|wie|waar|wanneer|waarom|welke?|hoe"),
    "pt": (r"e|mas|ou|(?:e\s+)?quanto\s+a\w*", r"que|quem|qua\w+|quando|onde|como|quant\w+"),
}
_LEADS = {code: re.compile(rf"[¿\s]*(?:{leads})\s+(?P<rest>\S.*)", re.IGNORECASE | re.DOTALL) for code, (leads, _) in _OTHER.items()}
_ASKS = {code: re.compile(rf"\b(?:{asking})\b", re.IGNORECASE) for code, (_, asking) in _OTHER.items()}

_TOKEN = re.compile(r"[\w@]+(?:[./'’*:-][\w@]+)*|[,;:]")

_ASKING = _set("what which who whom whose when where why how")
_AUXILIARY = _set(
    "is are was were do does did can could may might must should shall will would has have had isn't aren't don't doesn't can't won't"
)
_TELLING = _set("tell explain describe show list give name say i i'm my we please")
_PREPOSITIONS = _set(
    "about above across after against among around as at before behind below beside between beyond by during except for from in inside "
    "into like near of off on onto out outside over per since through to toward towards under until up via with within without"
)
_SUBORDINATE = _set("if when while once because unless until before after whether although though")
_HEDGES = _set("not only even just except especially")

# They name a side of something and say nothing without it; or ask how much of it: `How exactly?`
_RELATIONAL = _set(
    "default defaults size licence license limit limits price cost costs name names difference reason maximum minimum purpose meaning "
    "format version path unit exactly often deep long large big old fast quickly far high precisely example examples detail details else "
    "instead again too well needed necessary required"
)

# Of the reader's own place, not of what was said: `this machine`.
_HERE = _set("machine computer service server guide program product app application week month year")
_EXPLETIVE = re.compile(
    r"\b(?:is|was|would|isn't)\s+it\s+(?:possible|true|necessary|safe|allowed|better|worth|enough|okay|ok|easy|hard|normal|correct|a\s+problem)\b"
    r"|\bit\s+is\s+(?:possible|true|necessary|safe|allowed|worth|said)\b|\bdoes\s+it\s+(?:matter|make\s+sense)\b|\btakes?\s+to\b",
    re.IGNORECASE,
)
_BARE = re.compile(
    r"^(?:which|what|how\s+many|how\s+much)\s+[\w-]+(?:\s+(?:a|an|per|each|for\s+each)\s+[\w-]+)?[?.!\s]*$|^how\s+[\w-]+[?.!\s]*$",
    re.IGNORECASE,
)

_PERSONAL = _set("it its itself he him his she her hers they them their theirs")
_ORDINAL = _set("first second third fourth last next other same another different previous both")

# The `it` of somebody who speaks of the product. So many words of its own, and a question says what it is about.
_ENOUGH = 3


def standalone(question: str, history: Sequence[Turn]) -> str:
    """The question as it would be asked if nothing had been said before; the very same text if it depends on nothing.

    Earlier questions are completed in their turn, so a thread is followed as far as it goes.
    """
    before = answer = ""
    for turn in history:
        if turn.role == "user":
            before, answer = _completed(turn.content.strip(), before, answer), ""
        elif turn.role == "assistant":
            answer = turn.content.strip()
    return _completed(question, before, answer)


def _completed(question: str, before: str, answer: str) -> str:
    if not before or not question.strip():
        return question
    if (language := language_of(question, ("en", *_OTHER))) != "en":
        return f"{_topic(before)} {question}" if _is_led(question, language) else question
    rest = _COURTESY.sub("", question)
    core = _LED.sub("", rest)
    led = core != rest
    about = _ABOUT.match(core)
    if not (about or _depends(core, led)):
        return question
    before = _topic(before)
    subject = _ABOUT.sub("", core)
    whole = _replaced(before, subject) if about or _is_fragment(core) else _resolved(core, before, answer)
    return whole or f"{before} {rest[:1].upper()}{rest[1:]}"


def _topic(text: str) -> str:
    """An earlier question; of a long one the last sentence that asks, or the last one: before it stands what was pasted."""
    if len(text) <= _LONGEST:
        return text
    sentences = [text[start:end] for start, end in sentence_spans(text)] or [text]
    asking = [sentence for sentence in sentences if sentence.endswith("?")]
    return (asking or sentences)[-1][-_LONGEST:]


# Whether it depends


def _is_led(question: str, language: str) -> bool:
    """Whether a question in another language begins like a follow-up and asks nothing by itself, or has no words of its own."""
    own = len(content_stems(question, language))
    led = _LEADS[language].match(question)
    if led and not _ASKS[language].search(led["rest"]):
        return own <= _ENOUGH
    return not own or (own == 1 and len(question.split()) <= 2)


def _depends(core: str, led: bool) -> bool:
    words = [match[0].lower().replace("’", "'") for match in _TOKEN.finditer(core)]
    content = [word for word in words if _says(word)]
    own = sum(word not in _RELATIONAL for word in content)
    if not own or _BARE.match(core) or _refers(words, own, bool(_EXPLETIVE.search(core))):
        return True
    return _is_fragment(core) and (led or words[0] in _PREPOSITIONS | _SUBORDINATE | _HEDGES or len(content) == 1)


def _says(word: str) -> bool:
    """Whether a word has a meaning of its own."""
    return word[0] not in ",;:" and word not in STOP_WORDS and word not in _AUXILIARY and word not in _HEDGES and word not in _PREPOSITIONS


def _is_fragment(core: str) -> bool:
    """Whether it is no sentence: `the second page`, `on Sundays`, `if I have none`."""
    words = [match[0].lower() for match in _TOKEN.finditer(core)]
    if not words or words[0] in _ASKING or words[0] in _AUXILIARY or words[0] in _TELLING:
        return bool(_BARE.match(core))
    # A sentence may begin with a clause or a thing, and a comma: `Without a key, can I ...`; `On which port does ...`.
    starts = [i + 1 for i, word in enumerate(words[:-1]) if word in ",;:"]
    if any(words[i] in _ASKING or words[i] in _AUXILIARY or words[i] in _TELLING for i in starts):
        return False
    if words[0] in _PREPOSITIONS or words[0] in _SUBORDINATE or words[0] in _HEDGES:
        return not (len(words) > 1 and words[1] in _ASKING and any(word in _AUXILIARY for word in words))
    return not any(word in _AUXILIARY for word in _main(words))


def _main(words: list[str]) -> list[str]:
    """The words before a relative clause, whose verb is not the sentence's."""
    for i, word in enumerate(words[1:], 1):
        if word in ("that", "which", "who"):
            return words[:i]
    return words


def _refers(words: list[str], own: int, expletive: bool) -> bool:
    """Whether a word points at something that was said before, and that the question itself does not name."""
    named = explained = False  # a thing was named; and a clause has ended since, so that a pronoun may mean it
    for i, word in enumerate(words):
        previous, following = (words[i - 1] if i else ""), (words[i + 1] if i + 1 < len(words) else "")
        if word in _PERSONAL:
            subject = previous in _AUXILIARY and word in ("it", "they") and _says(following or ",")
            if not explained and not (word == "it" and expletive) and not (subject and own >= _ENOUGH):
                return True
        elif word in ("this", "these"):
            if following not in _HERE:
                return True
        elif word in ("that", "those"):
            # Not the one that begins a relative clause: `a link that leads out`, `those that failed`.
            relative = following == "that" or (_says(previous) if previous else False)
            ends = not following or following in _PREPOSITIONS or following in ("also", "too", "again", "back", "away", "then")
            if ends or not relative:
                return True
        elif word in ("one", "ones"):
            if i and (not _says(following or ",") or previous in _AUXILIARY or previous in _ORDINAL):
                return True
        elif word in ("latter", "former", "else"):
            return True
        elif word in _ORDINAL - {"another", "different", "next", "other"}:
            if not following or following in ("of", "one", "ones"):
                return True
        elif word in ("there", "then"):
            if i and previous not in _AUXILIARY and (not following or (word == "there" and previous in _PREPOSITIONS)):
                return True
        elif word == "so" and previous in ("do", "does", "did"):
            return True
        if _says(word) and word not in _RELATIONAL:
            named = True
        if word in ",;:" or word in _SUBORDINATE or (i and word in _ASKING) or word == "that":
            explained = explained or named
    return False


# How it is completed

_ARTICLES = "a|an|the|my|your|our|another|any|all"
_STOPPING = "|".join(sorted(_PREPOSITIONS | _AUXILIARY | _ASKING | _set("that and or not i you we it they be a an the")))
_NOUN = rf"(?!(?:{_STOPPING})\b)[\w@.'’+-]*\w"
_PHRASE = rf"{_NOUN}(?:\s+{_NOUN}){{0,3}}"
_OBJECT = rf"(?P<object>(?:(?:{_ARTICLES})\s+)?{_PHRASE})"

# `LM Studio`, `SYSTEM`, `hit@5`, `engine.queue`: names are told by how they are written.
_NAME = re.compile(r"`[^`]+`|\b(?:[A-Z][\w.@+-]*[\w@+]|[A-Za-z]+[\d@_.][\w.@+-]*\w|[a-z]+[A-Z]\w*)(?:\s+(?:[A-Z\d][\w.@+-]*))*")
_INDEFINITE = re.compile(rf"\b(?:a|an)\s+{_PHRASE}(?!\s+(?:that|which|who)\b)", re.IGNORECASE)
_WHICH = re.compile(
    rf"^(?:which|what|how\s+many|how\s+much)\s+(?P<what>{_PHRASE})(?=\s+(?:{'|'.join(sorted(_AUXILIARY))})\b)", re.IGNORECASE
)
_WHICH_IS = re.compile(rf"^(?:which|what)\s+(?P<what>{_PHRASE})\s+(?:is|are)\s+the\s+(?P<side>\w+)\s*\?$", re.IGNORECASE)
_I_DO = re.compile(rf"\b(?:(?:do|can|should|must|may|could)\s+(?:i|you|we|one)|to)\s+(?P<verb>\w+)\s+{_OBJECT}", re.IGNORECASE)
_WHAT_IS = re.compile(rf"^(?:what|who|where)\s+(?:is|are)\s+{_OBJECT}\s*[?.]?$", re.IGNORECASE)
# A subject is followed by its verb, and that by nothing or by what belongs to it.
_VERB = rf"\s+{_NOUN}(?=\s*(?:\?|$)|\s+(?:{'|'.join(sorted(_PREPOSITIONS | _SUBORDINATE))}|{_ARTICLES})\b)"
_IS = re.compile(rf"^(?:(?:how|when|where|why)\s+)?(?:is|are|was|were)\s+{_OBJECT}{_VERB}", re.IGNORECASE)
_DOES = re.compile(
    rf"^(?:(?:what|how|when|where|why)\s+)?(?:does|do|did|can|will)\s+(?!(?:i|you|we|it)\b){_OBJECT}{_VERB}",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"(?<!['’-])\b(?:it|they|them|one|ones|that|those|these|this|its|their)\b(?!['’-])", re.IGNORECASE)
_FROM_A_LIST = re.compile(
    r"\b(?:the\s+)(?:(?P<which>first|second|third|last)(?:\s+(?:one|of\s+(?:them|these|those)))?|(?P<of_two>latter|former))(?=\s*[?.]?$|\s+\w)",
    re.IGNORECASE,
)


def _replaced(before: str, part: str) -> str:
    """The earlier question with the part in the place of what it replaces; empty where that is not plain."""
    part = part.strip().rstrip("?!. ")
    first, _, others = part.partition(" ")
    if not part or (_PRONOUN.search(part.removeprefix("one ")) and first.lower() in _PREPOSITIONS):
        return ""
    end = "?" if before.endswith("?") else ""
    if _BARE.match(part):  # `which size`, in the place of `which licence`
        asked = _WHICH.match(before)
        return _capital(part) + before[asked.end() :] if asked and others else ""
    if first.lower() in _PREPOSITIONS:  # `on macOS`, in the place of `on Debian`, or else at the end
        part = first.lower() + part[len(first) :]
        same = re.search(rf"\b{first}\s+(?:(?:{_ARTICLES}|one)\s+)?{_PHRASE}", before, re.IGNORECASE)
        if same and same.start():
            return before[: same.start()] + part + before[same.end() :]
        return before.rstrip("?!. ") + " " + part + end
    if first.lower() in ("a", "an", "another"):
        there = _INDEFINITE.search(before)
        return before[: there.start()] + _small(part) + before[there.end() :] if there else ""
    if _NAME.fullmatch(part):
        names = [name for name in _NAME.finditer(before) if name.start()]
        if names:
            alike = next((name for name in names if name[0].isupper() == part.isupper()), names[0])
            return before[: alike.start()] + part + before[alike.end() :]
    done = re.fullmatch(r"(?P<verb>[a-z]+)\s+(?:it|one|them|that|those)(?P<more>.*)", part, re.IGNORECASE)
    if done and (asked := _I_DO.search(before)):  # `choose it`, in the place of `fetch a model`
        return before[: asked.start("verb")] + done["verb"].lower() + before[asked.end("verb") : asked.end("object")] + done["more"] + end
    subject = _IS.match(before) or _DOES.match(before)
    if subject and part.endswith("s") and subject["object"].endswith("s") and re.fullmatch(rf"{_PHRASE}(?:\s+and\s+{_PHRASE})?", part):
        return before[: subject.start("object")] + _small(part) + before[subject.end("object") :]  # of many things, other things
    return ""


def _resolved(core: str, before: str, answer: str) -> str:
    """The question with what its pronoun stands for; empty where that is not plain."""
    if (place := _FROM_A_LIST.search(core)) and (things := _listed(answer)):
        chosen = (place["which"] or place["of_two"]).lower()
        n = {"first": 0, "former": 0, "second": 1, "third": 2}.get(chosen, -1)
        return core[: place.start()] + things[n] + core[place.end() :] if n < len(things) else ""
    thing = _thing(before)
    pronoun = _PRONOUN.search(core)
    if not thing or not pronoun:
        return ""
    word = pronoun[0].lower()
    led = core[: pronoun.start()].lower().split()[-1:]
    if word == "it" and re.match(r"\s+(?:take|last|cost)\b", core[pronoun.end() :]):
        return ""  # not a thing: what is done with it
    following = core[pronoun.end() :].split()[:1]
    if (
        word in ("that", "this", "those", "these", "one", "ones")
        and not _AUXILIARY.issuperset(led or [""])
        and following
        and _says(following[0].lower().strip("?,.;:") or ",")
    ):
        return ""  # `that file`, `one failed`: not the pronoun alone
    bare = re.sub(rf"^(?:{_ARTICLES})\s+", "", thing, flags=re.IGNORECASE)
    many = word in ("they", "them", "those", "these", "ones", "their")
    if many and bare != thing and re.match(r"(?:a|an|another)\s", thing, re.IGNORECASE):
        thing = bare = bare if bare.endswith("s") else bare + "s"
    if word in ("one", "ones") and led and _says(led[0]):
        thing = bare  # `different ones`
    own = thing + ("'" if thing.endswith("s") else "'s") if word in ("its", "their") else thing
    return _capital(core[: pronoun.start()] + own + core[pronoun.end() :])


def _thing(before: str) -> str:
    """What the earlier question is about: its object, or its subject; empty where that is not plain."""
    if found := _WHICH_IS.match(before):
        return f"the {found['side']} {found['what']}"
    for pattern in (_WHAT_IS, _I_DO, _DOES, _IS):
        if (found := pattern.search(before)) and not set(found["object"].lower().split()) & (_PERSONAL | {"this", "that", "there"}):
            return found["object"]
    found = _WHICH.match(before)
    return f"the {found['what']}" if found else ""


def _listed(answer: str) -> list[str]:
    """The things that an answer's first sentence lists, `LangChain, LlamaIndex and LiteLLM.`; none where it lists none."""
    spans = sentence_spans(answer[:_LONGEST])
    if not spans:
        return []
    things = [thing.strip(" .") for thing in re.split(r",\s+(?:and\s+|or\s+)?|\s+and\s+|\s+or\s+", answer[slice(*spans[0])])]
    return things if len(things) > 1 and all(0 < len(thing.split()) <= _ENOUGH for thing in things) else []


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _small(text: str) -> str:
    """With a small first letter, unless it is a name's."""
    return text if _NAME.match(text) and not re.match(r"(?:A|An|Another)\s", text) else text[:1].lower() + text[1:]

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

import itertools
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
_GREETING = re.compile(
    r"\s*(?:hello|hi|hey|good\s+(?:morning|day|afternoon|evening)|thanks?|thank\s+you|ok(?:ay)?|great)(?:\s+(?:there|all|again|so\s+much|very\s+much))?[\s.,!]*",
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
_HERE = _set("machine computer service server guide program product app application day week month year season decade century time")
_EXPLETIVE = re.compile(
    r"\b(?:is|was|would|isn't)\s+it\s+(?:possible|true|necessary|safe|allowed|better|worth|enough|okay|ok|easy|hard|normal|correct|a\s+problem)\b"
    r"|\bit\s+is\s+(?:possible|true|necessary|safe|allowed|worth|said)\b|\bdoes\s+it\s+(?:matter|make\s+sense)\b|\btakes?\s+to\b",
    re.IGNORECASE,
)
_NOT_A_VERB = rf"(?!(?:{'|'.join(sorted(_AUXILIARY))})\b)[\w-]+"
_BARE = re.compile(
    rf"^(?:which|what|how\s+many|how\s+much)\s+{_NOT_A_VERB}(?:\s+(?:a|an|per|each|for\s+each)\s+[\w-]+)?[?.!\s]*$"
    rf"|^how\s+{_NOT_A_VERB}[?.!\s]*$",
    re.IGNORECASE,
)

_OF_PEOPLE = _set("he him his himself she her hers herself")
_OF_THINGS = _set("it itself they them")
_PERSONAL = _OF_PEOPLE | _OF_THINGS | _set("its their theirs")
_SAYING = _set("say says said claim claims claimed think thinks thought state states stated")
_ORDINAL = _set("first second third fourth last next other same another different previous both which this that")

# Words of its own with which a question says what it is about: where `it` may be the product that is spoken of (`Which file formats
# can it read?`); and where any pronoun is better left as it is.
_ENOUGH, _PLENTY = 3, 4


def standalone(question: str, history: Sequence[Turn]) -> str:
    """The question as it would be asked if nothing had been said before; the very same text if it depends on nothing.

    Earlier questions are completed in their turn, so a thread is followed as far as it goes.
    """
    before = answer = ""
    for turn in history:
        if turn.role == "user" and not _GREETING.fullmatch(turn.content):
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
    if not own or _BARE.match(core) or _refers(core, own):
        return True
    leads = led or words[0] in _PREPOSITIONS | _SUBORDINATE | _HEDGES or len(content) == 1
    return leads and own <= _PLENTY and _is_fragment(core)


def _says(word: str) -> bool:
    """Whether a word has a meaning of its own."""
    return word[0] not in ",;:" and word not in STOP_WORDS and word not in _AUXILIARY and word not in _HEDGES and word not in _PREPOSITIONS


def _is_fragment(core: str) -> bool:
    """Whether it is no sentence: `the second page`, `on Sundays`, `if I have none`."""
    words = [match[0].lower() for match in _TOKEN.finditer(core)]
    if not words or words[0] in _ASKING or words[0] in _AUXILIARY or words[0] in _TELLING:
        return bool(_BARE.match(core))
    # A sentence may begin with a clause or a thing, and a comma: `Without a key, tell me ...`.
    if any(before in ",;:" and word in _ASKING | _TELLING for before, word in itertools.pairwise(words)):
        return False
    return not any(word in _AUXILIARY for word in _main(words))


def _main(words: list[str]) -> list[str]:
    """The words before a relative clause, whose verb is not the sentence's."""
    for i, (before, word) in enumerate(itertools.pairwise(words), 1):
        if word in ("that", "which", "who") and _says(before):
            return words[:i]
    return words


def _refers(core: str, own: int) -> bool:
    """Whether a word points at something that was said before, and that the question does not name. `own`: its words with a meaning."""
    tokens = [match[0].replace("’", "'") for match in _TOKEN.finditer(core)]
    words = [token if len(token) > 1 and token.isupper() else token.lower() for token in tokens]
    expletive = bool(_EXPLETIVE.search(core))
    thing = name = explained = False  # named so far; and a clause has ended since, so that a pronoun may mean it
    for i, word in enumerate(words):
        before, after = (words[i - 1] if i else ""), (words[i + 1] if i + 1 < len(words) else "")
        if word in _OF_PEOPLE:
            if not name:
                return True
        elif word in _OF_THINGS:
            known = explained or own > _PLENTY or (thing and (name or after in _AUXILIARY or before in _SAYING))
            product = word in ("it", "they") and before in _AUXILIARY and own >= _ENOUGH
            if not known and not product and not (word == "it" and expletive):
                return True
        elif word in ("its", "their", "theirs"):
            if not (thing and (name or i > 2)) and own <= _PLENTY:
                return True
        elif _points(word, before, after, own) and not (explained and word in ("this", "these")):
            return True
        thing = thing or (_says(word) and word not in _RELATIONAL and before not in ("i", "you", "we"))
        name = name or (i > 0 and tokens[i][0].isupper() and word != "i")
        if word in ",;:" or word in _SUBORDINATE or (i and word in _ASKING) or word == "that":
            explained = explained or thing
    return False


def _points(word: str, before: str, after: str, own: int) -> bool:
    """Whether a word that is no personal pronoun points back, where it stands between these two."""
    if word in ("this", "these"):
        return after not in _HERE
    if word in ("that", "those"):
        # Not the one that begins a relative clause: `a link that leads out`, `those that failed`.
        ends = not after or after in _PREPOSITIONS or after in ("also", "too", "again", "back", "away", "then")
        return ends or not (after == "that" or (bool(before) and (_says(before) or before in ("have", "has", "had"))))
    if word in ("one", "ones"):
        # Not the number, `one file`, `is one of`, and not anybody: `how does one measure the heat of a thing`.
        modal = before in _AUXILIARY and before not in ("is", "are", "was", "were") and own < _ENOUGH
        return bool(before) and after != "of" and (modal or before in _ORDINAL or not _says(after or ","))
    if word in ("latter", "former"):
        return before == "the" and (word == "latter" or not _says(after or ","))
    if word in ("first", "second", "third", "fourth", "last", "same", "previous", "both"):
        return before in ("the", "in", "of", "for", "with") and (
            not after or after in ("one", "ones") or (after == "of" and word != "last")
        )
    if word in ("there", "then"):
        return bool(before) and before not in _AUXILIARY and (not after or (word == "there" and before in _PREPOSITIONS))
    return (word == "else" and own < _ENOUGH) or (word == "so" and before in ("do", "does", "did"))


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
_WHICH_IS = re.compile(rf"^(?:which|what)\s+(?P<what>{_PHRASE})\s+(?:is|are)\s+(?:the\s+)?(?P<side>\w+)\s*\?$", re.IGNORECASE)
_I_DO = re.compile(rf"\b(?:(?:do|can|should|must|may|could)\s+(?:i|you|we|one)|to)\s+(?P<verb>\w+)\s+{_OBJECT}", re.IGNORECASE)
_WHAT_IS = re.compile(rf"^(?:what|who|where)\s+(?:is|are)\s+{_OBJECT}\s*[?.]?$", re.IGNORECASE)
# A subject is followed by its verb, and that by nothing or by what belongs to it.
_VERB = rf"\s+{_NOUN}(?=\s*(?:\?|$)|\s+(?:{'|'.join(sorted(_PREPOSITIONS | _SUBORDINATE))}|{_ARTICLES})\b)"
_IS = re.compile(rf"^(?:(?:how|when|where|why)\s+)?(?:is|are|was|were)\s+{_OBJECT}{_VERB}", re.IGNORECASE)
_DOES = re.compile(
    rf"^(?:(?:what|how|when|where|why)\s+)?(?:does|do|did|can|will)\s+(?!(?:i|you|we|it)\b){_OBJECT}{_VERB}",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"(?<!['’-])\b(?:[Ii]t|[Tt]hey|them|ones?|[Tt]hat|[Tt]hose|[Tt]hese|[Tt]his|[Ii]ts|[Tt]heir)\b(?!['’-])")
_THERE = re.compile(r"\b(?:in\s+)?there\b(?=\s*[?.]?$|\s+\w)", re.IGNORECASE)
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
    named = _named(before, answer)
    if named and (place := _THERE.search(core)):
        return core[: place.start()] + f"in {named}" + core[place.end() :]
    thing, pronoun = named or _thing(before), _PRONOUN.search(core)
    if not thing or not pronoun:
        return ""
    word, rest = pronoun[0].lower(), core[pronoun.end() :]
    previous = core[: pronoun.start()].lower().split()[-1:]
    following = rest.lower().split()[:1]
    if word == "it" and re.match(r"\s+(?:take|last|cost)\b", rest):
        return ""  # not a thing: what is done with it
    if word in ("that", "this", "those", "these") and following and _says(following[0].strip("?,.;:") or ","):
        return ""  # `that file`: not the pronoun alone
    bare = re.sub(rf"^(?:{_ARTICLES})\s+", "", thing, flags=re.IGNORECASE)
    several = bare.endswith("s") and not bare.endswith("ss")
    if word in ("they", "them", "those", "these", "ones", "their"):
        if not several and not re.match(r"(?:a|an|another)\s", thing, re.IGNORECASE):
            return ""
        thing = thing if several else bare + "s"
        bare = re.sub(rf"^(?:{_ARTICLES})\s+", "", thing, flags=re.IGNORECASE)
    elif several and word in ("it", "its"):
        return ""
    if word in ("one", "ones") and previous and _says(previous[0]):
        thing = bare  # `different ones`
    own = thing + ("'" if thing.endswith("s") else "'s") if word in ("its", "their") else thing
    return _capital(core[: pronoun.start()] + own + rest)


def _thing(before: str) -> str:
    """What the earlier question is about: its object, or its subject; empty where that is not plain."""
    if (found := _WHICH_IS.match(before)) and found["side"].lower() not in STOP_WORDS:
        return f"the {found['side']} {found['what']}"
    for pattern in (_WHAT_IS, _I_DO, _DOES, _IS):
        if (found := pattern.search(before)) and not set(found["object"].lower().split()) & (_PERSONAL | {"this", "that", "there"}):
            return found["object"]
    found = _WHICH.match(before)
    return f"the {found['what']}" if found else ""


def _named(before: str, answer: str) -> str:
    """What an answer names and nothing else, if it was asked for: `engine.queue.`, `In `store/`, beside the ledger.`; else empty."""
    spans = sentence_spans(answer[:_LONGEST])
    if not spans or before.split()[0].lower() not in ("which", "what", "who", "where"):
        return ""
    codes = re.findall(r"`([^`]+)`", answer)
    if len(codes) == 1 and len(codes[0].split()) == 1:
        return codes[0]
    first = answer[slice(*spans[0])].rstrip(" .")
    # `Apache-2.0`, `LangChain`, `8000`: no word of the dictionary.
    return first if len(spans) == 1 and len(first.split()) <= _ENOUGH and re.search(r"\w[A-Z\d@_./]", first) else ""


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

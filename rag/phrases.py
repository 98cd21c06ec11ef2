"""What the service itself says in an answer, in the language of its domain: the refusal, and what stands beside an answer.

English is what `rag/prompt.py` has, and what an adapter was trained to refuse with; a refusal is told by `Done.refused`, never by its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag import prompt


@dataclass(frozen=True, slots=True)
class Phrases:
    """`refusal` is a whole answer; `withdrawn` says why one was taken back; `unbacked` and `quoted` as in `rag/prompt.py`."""

    refusal: str
    withdrawn: str
    unbacked: str
    quoted: str


ENGLISH = Phrases(prompt.REFUSAL, prompt.WITHDRAWN, prompt.UNBACKED, prompt.QUOTED)

BY_LANGUAGE = {
    "en": ENGLISH,
    "de": Phrases(
        "Das habe ich in Ihren Dokumenten nicht gefunden.",
        "Die Antwort oben ist durch Ihre Dokumente nicht belegt.",
        "\n\nDas ist durch kein Zitat belegt. ",
        "Der nächstliegende Satz in Ihren Dokumenten lautet:\n\n> {quote}",
    ),
    "es": Phrases(
        "No lo he encontrado en sus documentos.",
        "La respuesta anterior no está respaldada por sus documentos.",
        "\n\nNinguna cita lo respalda. ",
        "La frase más cercana en sus documentos es:\n\n> {quote}",
    ),
    "fr": Phrases(
        "Je ne l'ai pas trouvé dans vos documents.",
        "La réponse ci-dessus n'est pas étayée par vos documents.",
        "\n\nAucune citation ne l'étaye. ",
        "La phrase la plus proche dans vos documents est :\n\n> {quote}",
    ),
    "it": Phrases(
        "Non l'ho trovato nei suoi documenti.",
        "La risposta qui sopra non è confermata dai suoi documenti.",
        "\n\nNessuna citazione lo conferma. ",
        "La frase più vicina nei suoi documenti è:\n\n> {quote}",
    ),
    "nl": Phrases(
        "Dit heb ik niet in uw documenten gevonden.",
        "Het antwoord hierboven wordt niet door uw documenten gestaafd.",
        "\n\nGeen citaat staaft dit. ",
        "De zin in uw documenten die er het dichtst bij komt, is:\n\n> {quote}",
    ),
    "pt": Phrases(
        "Não encontrei isso nos seus documentos.",
        "A resposta acima não é confirmada pelos seus documentos.",
        "\n\nNenhuma citação o confirma. ",
        "A frase mais próxima nos seus documentos é:\n\n> {quote}",
    ),
}


def of(languages: Sequence[str]) -> Phrases:
    """In the first of the languages; in English where we have none in that."""
    return BY_LANGUAGE.get(languages[0], ENGLISH) if languages else ENGLISH


def own_words(answer: str) -> tuple[str, bool]:
    """The model's own words, and whether they are unbacked: without the quote that was put beside them then, in any language.

    Where the model said nothing at all, the quote is the answer.
    """
    for said in BY_LANGUAGE.values():
        own, unbacked, _ = answer.partition(said.unbacked)
        lead = said.quoted.partition("{")[0]
        if unbacked or own.startswith(lead):
            return own.removeprefix(lead), bool(unbacked)
    return answer, False

"""In which languages the passages of each domain are written, and in which questions are put to them, while that changes too.

Kept by a store (`rag/store.py`, `rag/served_store.py`), which makes the vectors anew; what a language is, is in `rag/languages.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from rag.languages import DEFAULT

Languages = tuple[str, ...]


class Spoken:
    """Of all domains. `stored`: by which languages the stored BM25 vectors of each were made. Changed by one thread at a time."""

    def __init__(self, stored: Mapping[str, Languages]) -> None:
        self._written = dict(stored)
        self._asked = dict(stored)
        self._whole: set[str] = set()
        """Domains whose passages are all known to be as `_written` says."""

    def of(self, domain: str) -> Languages:
        """The languages that what is written now is made by."""
        return self._written.get(domain, DEFAULT)

    def wrote(self, domain: str) -> None:
        """The domain has passages."""
        self._asked.setdefault(domain, self._written.setdefault(domain, DEFAULT))

    def known(self, domain: str, wanted: Languages) -> bool:
        """Whether all its passages are in these languages."""
        return domain in self._whole and self._written.get(domain) == wanted

    def change(self, domain: str, wanted: Languages) -> None:
        """From now on its passages are written in these languages; questions are put in the ones before as well, until `changed`."""
        self._whole.discard(domain)
        self._written[domain] = wanted
        self._asked[domain] = tuple(dict.fromkeys((*wanted, *self._asked.get(domain, ()))))

    def changed(self, domain: str, wanted: Languages) -> None:
        """All its passages are in these languages."""
        self._asked[domain] = wanted
        self._whole.add(domain)

    @property
    def domains(self) -> list[str]:
        """Those that may have passages."""
        return list(self._asked)

    def gone(self, domain: str) -> None:
        """It has no passages left: questions to all domains are not put in its languages.

        What comes back is written as before, until `change` says otherwise.
        """
        self._asked.pop(domain, None)

    def asked(self, domain: str | None, within: Collection[str] | None) -> Languages:
        """The languages of the passages that a question to a domain, to some, or to all of them is put to."""
        domains: Iterable[str] = [domain] if domain is not None else self.domains if within is None else within
        each = [self._asked.get(name, DEFAULT) for name in domains]
        return tuple(dict.fromkeys(language for languages in each for language in languages or DEFAULT)) or DEFAULT

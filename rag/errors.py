"""Every error that a person may see, in one tree. Each has a code, a sentence and a remedy.

    ReadingRoomError
    ├── InvalidInput (422)          what was asked for cannot be meant: InvalidQuestion, InvalidFilter (400), InvalidSettings
    ├── NotFound (404)              UnknownDomain, UnknownDocument, UnknownModel, UnknownAdapter,
    │                               UnknownConversation, UnknownKey
    ├── Refused (403)               OutsideCorpora, UnsafeBinding, Forbidden
    ├── OverQuota (429)             a limit of the key or of the client's address is reached
    ├── Busy (503)                  QueueFull, NotReady, StoreLocked, StoreUnreachable
    ├── ParseFailed (a document's)  the file cannot be read; becomes the `failed` record, never a crash
    └── Broken (500)                ModelUnusable (503), AdapterUnusable (503), EngineUnreachable (502), PullFailed (502), StoreBroken,
                                 StoreFull (507), DatabaseBroken, DataLocked, DataInClear, MissingPackage, CannotListen

`status` is the HTTP status that `server/errors.py` gives it. A test walks the tree and fails on a class without
its own code. Raised, never printed and swallowed.
"""

from __future__ import annotations


class ReadingRoomError(Exception):
    """Base of all: `message` says what happened, `remedy` what to do, `code` is stable for programs.

    `limit` is the number that was passed, if the error is about one.
    """

    code = "internal"
    status = 500
    title = "Something went wrong"

    def __init__(self, message: str, remedy: str, limit: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.limit = limit


class InvalidInput(ReadingRoomError):
    """The request is well-formed but cannot be carried out as it stands."""

    code, status, title = "invalid_input", 422, "Invalid input"


class InvalidQuestion(InvalidInput):
    """The question is empty, too long, or not text."""

    code, title = "invalid_question", "Invalid question"


class InvalidFilter(InvalidInput):
    """A filter of a search has an unknown name or a value that no document can have."""

    code, status, title = "invalid_filter", 400, "Invalid filter"


class InvalidSettings(InvalidInput):
    """A setting has an unknown name or an impossible value; the message names the key and the value."""

    code, title = "invalid_settings", "Invalid settings"


class NotFound(ReadingRoomError):
    """What was named does not exist."""

    code, status, title = "not_found", 404, "Not found"


class UnknownDomain(NotFound):
    """No folder of that name below `corpora/`."""

    code, title = "unknown_domain", "Unknown domain"


class UnknownDocument(NotFound):
    """No document of that id in the index."""

    code, title = "unknown_document", "Unknown document"


class UnknownModel(NotFound):
    """There is no model of that name on this machine."""

    code, title = "unknown_model", "Unknown model"


class UnknownAdapter(NotFound):
    """No adapter of that name is installed."""

    code, title = "unknown_adapter", "Unknown adapter"


class UnknownConversation(NotFound):
    """No conversation of that id, or not one of whoever asks."""

    code, title = "unknown_conversation", "Unknown conversation"


class UnknownKey(NotFound):
    """No key of that id or name."""

    code, title = "unknown_key", "Unknown key"


class Refused(ReadingRoomError):
    """Understood, and not done for safety's sake."""

    code, status, title = "refused", 403, "Refused"


class OutsideCorpora(Refused):
    """A path that leaves the watched folder: `..`, an absolute path, or a link that points out."""

    code, title = "outside_corpora", "Path outside the corpora"


class UnsafeBinding(Refused):
    """Listening beyond this machine without a key."""

    code, title = "unsafe_binding", "Refusing to listen without a key"


class Forbidden(Refused):
    """The key is good, and does not allow this."""

    code, title = "forbidden", "Not allowed"


class OverQuota(ReadingRoomError):
    """A limit is reached: `limit` is its number, `policy` its name in the `RateLimit` headers, `retry_after` seconds until it lets in."""

    code, status, title = "over_quota", 429, "Over quota"

    def __init__(self, message: str, remedy: str, limit: int, policy: str, retry_after: int) -> None:
        super().__init__(message, remedy, limit)
        self.policy = policy
        self.retry_after = retry_after


class Busy(ReadingRoomError):
    """Not now; try again. `retry_after` is in seconds."""

    code, status, title = "busy", 503, "Busy"
    retry_after = 2


class QueueFull(Busy):
    """As many questions wait as the settings allow; running answers go on."""

    code, title = "queue_full", "Too many questions at once"


class NotReady(Busy):
    """Still starting, or a part that this call needs is down; the message says which."""

    code, title = "not_ready", "Not ready"


class StoreLocked(Busy):
    """Another process has this data directory open."""

    code, title = "store_locked", "The data directory is in use"


class StoreUnreachable(Busy):
    """The Qdrant server at `store.url` does not answer. What was to be written is written when it does."""

    code, title = "store_unreachable", "The index's server does not answer"
    retry_after = 5


class ParseFailed(ReadingRoomError):
    """A file that cannot be read. `code` is given per case: `unsupported_format`, `too_large`, `binary_file`,
    `encrypted`, `broken_file`, `out_of_memory`, `timed_out`, `unreadable`, `no_text`, `missing_program`, `too_deep`."""

    code, status, title = "parse_failed", 422, "The file cannot be read"

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.code = code


class Broken(ReadingRoomError):
    """A part of the installation does not work."""

    code, status, title = "broken", 500, "Something is broken"


class ModelUnusable(Broken):
    """A model file is missing, damaged, or not what its card says."""

    code, status, title = "model_unusable", 503, "The model cannot be used"


class AdapterUnusable(Broken):
    """An adapter is damaged, or made for another model."""

    code, status, title = "adapter_unusable", 503, "The adapter cannot be used"


class EngineUnreachable(Broken):
    """The server at `engine.url` does not answer, or not as it should."""

    code, status, title = "engine_unreachable", 502, "The language model's server does not answer"


class PullFailed(Broken):
    """A download that did not come to its end; what is there is kept, unless the message says otherwise."""

    code, status, title = "pull_failed", 502, "The model could not be fetched"


class StoreBroken(Broken):
    """The vector store cannot be opened or answered with an error."""

    code, title = "store_broken", "The index cannot be used"


class StoreFull(Broken):
    """The disk has too little room for the index to be written; `limit` is the bytes that must be free."""

    code, status, title = "store_full", 507, "The disk is full"


class DatabaseBroken(Broken):
    """A SQLite file cannot be opened: it is damaged, in the way, or of a newer program."""

    code, title = "database_broken", "A database cannot be used"


class DataLocked(Broken):
    """The data directory is encrypted, and its key is missing, wrong, or readable by others."""

    code, title = "data_locked", "The data directory is locked"


class DataInClear(Broken):
    """A key is given for a data directory that is not encrypted."""

    code, title = "data_in_clear", "The data directory is not encrypted"


class MissingPackage(Broken):
    """A Python package that this needs is not installed; the remedy is the command that installs it."""

    code, title = "missing_package", "A package is missing"


class CannotListen(Broken):
    """The address to listen on is taken, or is not one of this machine."""

    code, title = "cannot_listen", "Cannot listen"

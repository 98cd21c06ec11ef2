"""Mails: .eml, Outlook's .msg, and .mbox -> who wrote what to whom and when, the body once, attachments as members.

All three become a `_Mail` first and are written out by `_write`. The standard library splits a mail into its parts, but what
the parts and headers say is decoded here: its newer policy raises on headers that real mails have, and takes
milliseconds for each address. HTML bodies go through `readers/html.py`; attachments are read in `ingest/members.py`.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import datetime as dt
import email
import email.generator
import email.message
import email.policy
import email.utils
import functools
import hashlib
import io
import mimetypes
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.header import Header
from email.message import Message
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any, Literal

from ingest.parse import Builder, Member, Options, Parsed, decode, magic
from ingest.readers.archive import Names, spoken_size
from rag.errors import MissingPackage, ParseFailed

_MAX_PARTS = 10_000  # of one mail; the largest of the real ones here has 14
_MAX_HEADER = 10_000  # characters; addresses of 200 receivers
_MAX_HEADER_LINES = 20_000
_MAX_RECEIVERS = 2_000  # characters of To and Cc that are kept: a mailing list's addresses would drown the mail
_STUB_WORDS = 60  # "Your program cannot show this mail. Open it at https://..." takes 30
_MAX_NAMED = 100  # attachments that a mail's own text names
_SIGNATURES = {
    "application/pkcs7-signature", "application/x-pkcs7-signature", "application/pgp-signature", "application/pgp-keys",
    "application/pgp-encrypted",
}  # fmt: skip
_SMIME = {"application/pkcs7-mime", "application/x-pkcs7-mime"}


_Body = tuple[Literal["plain", "html", "rtf"], str]


@dataclass
class _Attachment:
    """`name` is as the mail has it, not yet safe to use as a path."""

    name: str
    read: Callable[[int], bytes]


@dataclass
class _Mail:
    """What the three formats have in common. `bodies` are in order, and none says again what another says."""

    subject: str = ""
    about: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[_Body] = field(default_factory=list)
    attachments: list[_Attachment] = field(default_factory=list)
    encrypted: bool = False


def read_eml(data: bytes, options: Options) -> Parsed:
    """A mail in a file. Raises `ParseFailed` with `encrypted`, `binary_file`, `too_large` or `too_deep`."""
    return _one(_mail(_message(data)), options)


def read_msg(data: bytes, options: Options) -> Parsed:
    """A mail that Outlook saved. Raises `ParseFailed` with `encrypted`, `broken_file`, `too_large` or `too_deep`."""
    return _one(_outlook_mail(data), options)


def _one(mail: _Mail, options: Options) -> Parsed:
    if mail.encrypted and not mail.bodies:
        raise ParseFailed("encrypted", "The mail is encrypted; only its receiver can read it.", "Save it decrypted, or leave it out.")
    builder = Builder(options.step)
    if mail.subject:
        builder.add("heading", mail.subject, level=1)
    _write(builder, mail, options, level=1)
    names = Names()
    members = tuple(Member(names.add(_file_name(item.name)), None, item.read) for item in mail.attachments)
    parsed = builder.build(mail.subject or None)
    return Parsed(parsed.text, parsed.blocks, parsed.title, members)


def read_mbox(data: bytes, options: Options) -> Parsed:
    """A mailbox: each mail below its subject as a heading, attachments below `<number> <subject>/`.

    Raises `ParseFailed`: `broken_file` if no mail is in it, `too_large`.
    """
    starts = [match.start("from") for match in _FROM_LINE.finditer(data)]
    if not starts and not re.match(rb"\s*[!-9;-~]+:", data):
        raise ParseFailed("broken_file", "No mails were found in the mailbox.", "Export it again, as mbox.")
    starts = starts or [0]
    ends = [*starts[1:], len(data)]

    @functools.lru_cache(maxsize=1)  # a mail's attachments are read one after the other; all mails at once are too much to hold
    def mail_at(start: int, end: int) -> _Mail:
        raw = data[start:end]
        if raw.startswith(b"From "):
            raw = raw[raw.index(b"\n") + 1 :]
        return _mail(_message(_QUOTED_FROM.sub(rb"\1", raw)))

    def reader(start: int, end: int, i: int) -> Callable[[int], bytes]:
        return lambda limit: mail_at(start, end).attachments[i].read(limit)

    builder, names = Builder(), Names()
    members = []
    digits = max(3, len(str(len(starts))))
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        try:
            mail = mail_at(start, end)
        except ParseFailed as error:  # one hostile mail does not hide the others
            builder.add("paragraph", f"(Mail {number} is left out. {error.message})")
            continue
        # Level 2: the mailbox is the document, and none of its mails gives it a title.
        builder.add("heading", mail.subject or "(no subject)", level=2)
        _write(builder, mail, options, level=2)
        folder = f"{number:0{digits}} {_file_name(mail.subject or 'no subject')[:80].strip()}"
        for i, item in enumerate(mail.attachments):
            members.append(Member(names.add(f"{folder}/{_file_name(item.name)}"), None, reader(start, end, i)))
        options.step(number, len(starts))
    parsed = builder.build(None)
    return Parsed(parsed.text, parsed.blocks, None, tuple(members))


# A mail begins after an empty line, with "From ", a date, and then a header. A line of a body that begins with "From " has no
# time in it, or is not followed by a header.
_FROM_LINE = re.compile(rb"(?:\A|\n\r?\n)(?P<from>From [^\n]{0,200}\d\d:\d\d[^\n]{0,100}\n)(?=[!-9;-~]+:|>From )")
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)  # how mailboxes keep such lines of a body apart


# Writing


def _write(builder: Builder, mail: _Mail, options: Options, level: int) -> None:
    """Who, to whom, when; the body; the names of the attachments. `level` is the heading's above it."""
    builder.add("paragraph", "\n".join(f"{name}: {value}" for name, value in mail.about if value))
    if mail.encrypted and not mail.bodies:
        builder.add("paragraph", "(This mail is encrypted.)")
    for kind, text in mail.bodies:
        if kind != "plain":
            _append(builder, _read_page(kind, text, options), level)
        else:
            for paragraph in re.split(r"\n[ \t\r\f\v\xa0]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
                builder.add("paragraph", paragraph)
    if mail.attachments:
        named = [" ".join(_file_name(item.name).split()) for item in mail.attachments[:_MAX_NAMED]]
        more = len(mail.attachments) - len(named)
        builder.add("paragraph", f"Attachments: {', '.join(named)}" + (f" and {more:,} more" if more else ""))


def _read_page(kind: str, text: str, options: Options) -> Parsed:
    if kind == "rtf":
        from ingest.readers.rtf import read

        return read(text.encode("latin-1"), options)
    from ingest.readers.html import read as read_html

    return read_html(text, options)


def _append(builder: Builder, parsed: Parsed, level: int) -> None:
    before = ""
    for block in parsed.blocks:
        glue = "\n" if block.kind == before == "table_row" else "\n\n"
        depth = min(6, (block.level or 1) + level) if block.kind == "heading" else None
        builder.add(block.kind, parsed.text[block.start : block.end], level=depth, glue=glue)
        before = block.kind


def _file_name(name: str) -> str:
    """One path part: what the sender's own folders were called is no part of the name."""
    return re.split(r"[/\\]", name.rstrip("/\\ "))[-1] or "unnamed"


# MIME


class _Policy(email.policy.Compat32):
    """The library takes a header's parameters apart in quadratic time: 290 s for 2 MB. So a header is cut."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        """Name and value of a header, from its lines."""
        name, value = super().header_source_parse(sourcelines)
        return name, value[:_MAX_HEADER]


def _message(data: bytes) -> Message:
    """The mail split into its parts. Raises `ParseFailed` with `binary_file` or `too_deep`."""
    if b"\0" in data[:1000] or data.startswith(codecs.BOM_UTF8):
        text = decode(data)  # saved as UTF-16 by an editor
        if text is None:
            raise ParseFailed("binary_file", "The file is not a mail.", "Give the file the suffix of what it is.")
        data = text.encode("utf-8", "replace")
    try:
        message = email.message_from_bytes(_mended(data.lstrip(b"\r\n")), policy=_Policy())
    except RecursionError:
        raise _too_deep() from None
    if not message.keys() and (magic(data) or decode(data[:100_000]) is None):
        raise ParseFailed("binary_file", "The file is not a mail.", "Give the file the suffix of what it is.")
    return message


_USUAL = re.compile(rb"^(?:from|to|subject|date|received|message-id|return-path|delivered-to)[ \t]*:", re.IGNORECASE | re.MULTILINE)


def _mended(data: bytes) -> bytes:
    """With headers that the library understands: it takes the first line that is none for the body's beginning.

    Old mails have white space before the colon (RFC 5322 4.5), broken ones a stray line between or above their headers.
    """
    end = re.search(rb"\r?\n\r?\n|\Z", data)
    head = data[: end.start()] if end else data
    if not _USUAL.search(head):
        return data
    head = re.sub(rb"^([!-9;-~]+)[ \t]+:", rb"\1:", head, flags=re.MULTILINE)
    lines = [line for line in re.split(rb"\r?\n", head) if re.match(rb"[!-9;-~]+:|[ \t]", line)]
    return b"\n".join(lines[:_MAX_HEADER_LINES]) + data[len(data) if not end else end.start() :]


def _too_deep() -> ParseFailed:
    return ParseFailed("too_deep", "The mail's parts are nested too deeply to be read.", "Save the part that matters as a file of its own.")


def _mail(message: Message) -> _Mail:
    mail = _Mail()
    leaves = list(_leaves(message))
    hint = _hint(message, [part for _, part in leaves])
    mail.about, mail.subject = _about(message, hint)
    groups: dict[int, list[_Body]] = {}
    attached: list[Message] = []
    events: dict[str, None] = {}
    for group, part in leaves:
        kind, disposition, named = part.get_content_type(), _disposition(part), bool(_own_name(part, hint))
        if kind in _SIGNATURES:
            mail.encrypted |= kind == "application/pgp-encrypted"
        elif kind in _SMIME and str(part.get_param("smime-type", "enveloped-data")).lower() == "enveloped-data":
            mail.encrypted = True
        elif kind == "text/calendar":
            events[_event(_text(_content(part), _charset(part)))] = None  # often there twice: as a part and as invite.ics
        elif kind == "message/delivery-status":
            blocks = part.get_payload() if part.is_multipart() else [part]
            text = "\n".join(f"{name}: {_header(str(value))}" for block in blocks[:_MAX_NAMED] for name, value in block.raw_items())
            groups.setdefault(group, []).append(("plain", text))
        elif kind == "text/rfc822-headers":
            about, subject = _about(email.message_from_bytes(_content(part), policy=_Policy()), hint)
            groups.setdefault(group, []).append(("plain", "\n".join(f"{k}: {v}" for k, v in [("Subject", subject), *about] if v)))
        elif part.get_content_maintype() in ("text", "multipart") and disposition != "attachment" and not named:
            html = kind in ("text/html", "text/enriched", "text/richtext")
            text = _text(_content(part), _charset(part), html=html)
            html = html or (kind.startswith("multipart/") and bool(re.match(r"\s*<(!doctype|html|body)\b", text, re.IGNORECASE)))
            if text.lstrip().startswith("-----BEGIN PGP MESSAGE-----"):
                mail.encrypted = True
            elif text.strip():
                groups.setdefault(group, []).append(("html" if html else "plain", text))
        else:
            attached.append(part)
    mail.bodies = [body for group in groups.values() for body in _choose(group)]
    mail.bodies += [("plain", event) for event in events if event]
    pages = " ".join(text for group in groups.values() for kind, text in group if kind == "html")
    shown = {found.lower() for found in re.findall(r"\bcid:([^\"'\s>)]{1,300})", pages, re.IGNORECASE)}
    for part in attached:
        if part.get_content_maintype() == "image" and _is_inline(part, shown, bool(pages)):
            continue
        mail.attachments.append(_Attachment(_name(part, len(mail.attachments) + 1, hint), functools.partial(_bytes_of, part)))
    return mail


def _hint(message: Message, leaves: list[Message]) -> str:
    """The charset of headers that do not say theirs: that of the text, or of the headers that do."""
    spoken = (word[1] for _, value in message.raw_items() if (word := _WORD.search(str(value))))
    return next((charset for part in leaves if (charset := _charset(part))), "") or next(spoken, "cp1252")


def _leaves(message: Message) -> Iterator[tuple[int, Message]]:
    """The parts that hold something, in order, each with the number of the alternative it belongs to. Mails inside stay whole."""
    stack: list[tuple[int, Message]] = [(0, message)]
    count = 0
    while stack:
        group, part = stack.pop()
        count += 1
        if count > _MAX_PARTS:
            raise ParseFailed("too_large", f"The mail has more than {_MAX_PARTS:,} parts.", "Save what matters of it as files.")
        if part.get_content_maintype() == "multipart" and part.is_multipart():
            # The outermost alternative counts: Apple puts attachments between halves of the HTML one.
            inner = group or (count if part.get_content_subtype() == "alternative" else 0)
            stack.extend((inner, child) for child in reversed(part.get_payload()))
        else:
            yield group or -count, part


def _choose(group: list[_Body]) -> list[_Body]:
    """The plain text of an alternative, unless it only says that there is another."""
    plain = [body for body in group if body[0] == "plain"]
    html = [body for body in group if body[0] == "html"]
    if not plain or not html:
        return group
    words = sum(len(text.split()) for _, text in plain)
    if words > _STUB_WORDS:
        return plain
    # A page has more words than its text version: its links and footers. Four times as many, and the text version is a stub.
    shown = sum(len(_read_page(kind, text, Options()).text.split()) for kind, text in html)
    return html if words * 4 < shown else plain


def _about(message: Message, hint: str) -> tuple[list[tuple[str, str]], str]:
    """The headers for people, and the subject."""
    found: dict[str, list[str]] = {}
    for name, value in message.raw_items():
        key = name.lower()
        if key in ("from", "to", "cc", "date", "subject", "sender"):
            found.setdefault(key, []).append(_header(str(value), hint))
    values = {key: ", ".join(filter(None, texts)) for key, texts in found.items()}
    date = next(iter(found.get("date", [])), "")
    who = values.get("from") or values.get("sender", "")
    about = [("From", who), ("To", _some(values.get("to", ""))), ("Cc", _some(values.get("cc", "")))]
    # Quotes around a name say nothing, unless there is a comma in it.
    about = [(name, re.sub(r'(^|[,:;] ?)"([^"\\,;<>]*)"(?= <)', r"\1\2", value)) for name, value in about]
    return [*about, ("Date", _date(date))], next(iter(found.get("subject", [])), "")


def _some(receivers: str) -> str:
    if len(receivers) <= _MAX_RECEIVERS:
        return receivers
    cut = receivers[:_MAX_RECEIVERS]
    return f"{cut.rpartition(',')[0] or cut} and more"


def _date(value: str) -> str:
    """`16 July 2008, 06:24 +0300`; what is no date stays as it is."""
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        try:
            when = dt.datetime.fromisoformat(value)
        except ValueError:
            return value
    return _spoken(when)


def _spoken(when: dt.datetime) -> str:
    return f"{when.day} {when:%B %Y, %H:%M %z}".strip()


_WORD = re.compile(r"=\?([^?\s]{1,60})\?([bBqQ])\?([^?]*)\?=")


def _header(value: str, hint: str = "") -> str:
    """A header as people read it: encoded words (RFC 2047) decoded wherever they stand, bare 8-bit characters guessed."""
    if not value.isascii():
        value = _text(value.encode("utf-8", "surrogateescape"), hint)
    out: list[str] = []
    charset, run = "", b""  # neighbours of one charset are decoded together: mailers cut in the middle of a character
    end = 0
    for word in _WORD.finditer(value):
        between = value[end : word.start()]
        this = word[1].partition("*")[0].lower()
        if between.strip() or end == 0 or this != charset:
            out += [_text(run, charset), between if between.strip() or end == 0 else ""]
            run = b""
        charset, end = this, word.end()
        coded = word[3].encode("latin-1", "replace")
        run += binascii.a2b_qp(coded, header=True) if word[2] in "qQ" else _base64(coded)
    out += [_text(run, charset), value[end:]]
    return " ".join("".join(out).replace("\0", "").split())


def _base64(coded: bytes) -> bytes:
    coded = re.sub(rb"[^A-Za-z0-9+/]", b"", coded)
    return base64.b64decode(coded[: len(coded) - (len(coded) % 4 == 1)] + b"=" * (-len(coded) % 4))


# What mailers call a charset, and the larger one that they mean.
_MEANT = {
    "iso8859-1": "cp1252", "ascii": "cp1252", "shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949",
    "iso8859-9": "cp1254", "big5": "big5hkscs",
}  # fmt: skip
_LATIN = {"cp1252", "iso8859-15"}
# Codecs that are no charset of a mail, and some of them quadratic.
_NO_CHARSETS = {"punycode", "idna", "unicode-escape", "raw-unicode-escape", "undefined", "mbcs", "oem"}


def _codec(charset: str) -> str:
    """Python's name of the codec, or an empty string if there is none."""
    found = re.search(r"[A-Za-z0-9][\w.:+-]*", charset)
    try:
        name = codecs.lookup(found[0]).name if found else ""
    except (LookupError, ValueError):
        return ""
    return "" if name in _NO_CHARSETS else _MEANT.get(name, name)


def _text(data: bytes, charset: str, *, html: bool = False) -> str:
    """Bytes as text: as declared if they are that, else as they look."""
    name = _codec(charset)
    # Whatever Latin is declared, bytes above 127 that are UTF-8 to the last one are no accident.
    for encoding in ("utf-8", name) if name in _LATIN or not name else (name, "utf-8"):
        try:
            return data.decode(encoding) if encoding else (decode(data, html=html) or "")
        except (UnicodeDecodeError, LookupError):
            continue
    if name and name != "utf-8":
        try:
            text = data.decode(name, "replace")
        except LookupError:  # a codec from bytes to bytes
            text = ""
        if text and text.count("\ufffd") * 20 < len(text):
            return text
    return decode(data, html=html) or data.decode("cp1252", "replace")


def _charset(part: Message) -> str:
    value = part.get_param("charset", "")
    return str(value[2] if isinstance(value, tuple) else value)


def _disposition(part: Message) -> str:
    return str(part.get("content-disposition", "")).partition(";")[0].strip().lower()


def _content(part: Message) -> bytes:
    """A part's bytes, decoded as its transfer encoding says or seems to say (`quoted printable`, `base64;`)."""
    said = str(part.get("content-transfer-encoding", "")).lower()
    for encoding in ("quoted-printable", "base64", "x-uuencode"):
        if said != encoding and re.sub(r"[^a-z0-9]", "", encoding) in re.sub(r"[^a-z0-9]", "", said):
            del part["content-transfer-encoding"]
            part["Content-Transfer-Encoding"] = encoding
    if part.is_multipart():
        return b""
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _own_name(part: Message, hint: str) -> str:
    for key, value in part.raw_items():
        if key.lower() in ("content-disposition", "content-type") and not str(value).isascii():
            part.replace_header(key, _header(str(value), hint))
    try:
        return part.get_filename("") or ""
    except (ValueError, TypeError, LookupError, AttributeError):  # RFC 2231 with parts missing
        return ""


def _name(part: Message, number: int, hint: str) -> str:
    """The attachment's name, made up where it has none; the suffix decides how it is read, so it gets one."""
    name = _header(_own_name(part, hint), hint) or _header(str(part.get("content-location", "")), hint)
    kind = part.get_content_type()
    if part.get_content_maintype() == "message" and part.is_multipart():
        inner = part.get_payload(0)
        subject = _about(inner, hint)[1] if isinstance(inner, Message) else ""
        name = name or re.sub(r"[/\\]", "-", subject)[:120] or f"mail-{number}"
        return name if name.lower().endswith((".eml", ".msg")) else f"{name}.eml"
    if kind == "application/ms-tnef":
        return name or "winmail.dat"
    suffix = _suffix(kind)
    name = name or f"attachment-{number}{suffix or '.bin'}"
    return name if re.search(r"\.\w{1,8}$", name) else name + suffix


def _suffix(kind: str) -> str:
    """`.pdf` for application/pdf; empty where the type says nothing."""
    known = {"image/jpeg": ".jpg", "image/jpg": ".jpg", "image/tiff": ".tiff", "text/plain": ".txt", "text/html": ".html"}
    return known.get(kind) or ("" if kind == "application/octet-stream" else _types().guess_extension(kind) or "")


@functools.cache
def _types() -> mimetypes.MimeTypes:
    return mimetypes.MimeTypes()  # what Python knows, without what this machine adds


def _is_inline(part: Message, shown: set[str], has_page: bool) -> bool:
    """Whether a picture is part of the page: the page shows it, or it has an id for that and nobody called it an attachment."""
    own_id = str(part.get("content-id", "")).strip().strip("<>").lower()
    return bool(own_id) and (own_id in shown or (has_page and _disposition(part) != "attachment"))


def _bytes_of(part: Message, limit: int) -> bytes:
    """An attachment's bytes. Raises `ParseFailed` with `too_large`."""
    if part.is_multipart():
        content = _mail_inside(part)
    else:
        content = _content(part)
    if len(content) > limit:
        raise ParseFailed("too_large", f"The attachment is larger than {spoken_size(limit)}.", "Save it into the folder.")
    return content


def _mail_inside(part: Message) -> bytes:
    inner = part.get_payload(0)
    if not isinstance(inner, Message):
        return b""
    said = str(part.get("content-transfer-encoding", "")).lower()
    if "base64" in said and not inner.keys():
        return _base64(str(inner.get_payload()).encode("ascii", "ignore"))  # against the RFC, and common
    buffer = io.BytesIO()
    try:
        email.generator.BytesGenerator(buffer, mangle_from_=False, policy=email.policy.compat32).flatten(inner)
    except RecursionError:
        raise _too_deep() from None
    return buffer.getvalue()


# Calendars

_EVENT_LINES = (("SUMMARY", "Event"), ("DTSTART", "Begins"), ("DTEND", "Ends"), ("LOCATION", "Where"), ("ORGANIZER", "Organizer"),
                ("ATTENDEE", "Invited"), ("DESCRIPTION", "About"), ("STATUS", "Status"))  # fmt: skip


def _event(text: str) -> str:
    """The events of an invitation (RFC 5545), one line a property; time zones and alarms left out."""
    lines = re.sub(r"\r?\n[ \t]", "", text).splitlines()
    out: list[str] = []
    where: list[str] = []
    values: dict[str, list[str]] = {}
    for line in lines[:100_000]:
        head, _, value = line.partition(":")
        key, _, _ = head.upper().partition(";")
        if key == "BEGIN":
            where.append(value.strip().upper())
        elif key == "END":
            if where and where.pop() in ("VEVENT", "VTODO"):
                out.append("\n".join(f"{said}: {'; '.join(values[key])}" for key, said in _EVENT_LINES if key in values))
                values = {}
        elif where and where[-1] in ("VEVENT", "VTODO") and value.strip():
            if '"' in head:  # a colon within quotes belongs to the parameter
                head, value = re.match(r'((?:[^":]|"[^"]*")*):?(.*)', line, re.DOTALL).groups()  # type: ignore[union-attr]
            name = re.search(r'CN=(?:"([^"]*)"|([^;:]*))', head, re.IGNORECASE)
            address = re.sub(r"^mailto:", "", value.strip(), flags=re.IGNORECASE)
            if key in ("ORGANIZER", "ATTENDEE"):
                value = f"{name[1] or name[2]} <{address}>" if name else address
            elif key in ("DTSTART", "DTEND"):
                zone = re.search(r'TZID="?([^";:]*)', head, re.IGNORECASE)
                value = _event_time(value.strip()) + (f" {zone[1]}" if zone else "")
            else:
                value = re.sub(r"\\([nN,;\\])", lambda match: "\n" if match[1] in "nN" else match[1], value)
            said = values.setdefault(key, [])
            if len(said) < _MAX_NAMED:
                said.append(value.strip())
    return "\n\n".join(filter(None, out))


def _event_time(value: str) -> str:
    for form, spoken in (("%Y%m%dT%H%M%SZ", "%B %Y, %H:%M UTC"), ("%Y%m%dT%H%M%S", "%B %Y, %H:%M"), ("%Y%m%d", "%B %Y")):
        try:
            when = dt.datetime.strptime(value, form)
        except ValueError:
            continue
        return f"{when.day} {when:{spoken}}"
    return value


# Outlook


@dataclass(frozen=True)
class _Storage:
    """A folder of an Outlook file: the mail itself, one of its attachments or receivers (MS-OXMSG). `header` is in bytes."""

    ole: Any
    path: tuple[str, ...]
    header: int
    codepage: int = 1252

    def binary(self, tag: int, kind: int = 0x0102) -> bytes | None:
        """A property of variable length, or None."""
        path = [*self.path, f"__substg1.0_{tag:04X}{kind:04X}"]
        if not self.ole.exists(path) or self.ole.get_type(path) != 2:  # 2 is a stream
            return None
        return self.ole.openstream(path).read()

    def text(self, tag: int) -> str:
        """A property that is text, without white space around it; empty if it is not there."""
        if wide := self.binary(tag, 0x001F):
            return wide.decode("utf-16-le", "replace").strip("\0 \r\n\t")
        return _text(self.binary(tag, 0x001E) or b"", _codepage(self.codepage)).strip("\0 \r\n\t")

    def number(self, tag: int) -> int | None:
        """A property of 4 bytes."""
        found = self._fixed.get(tag)
        return None if found is None else struct.unpack("<L", found[:4])[0]

    def time(self, tag: int) -> str:
        """A property that is a time, for people; empty if it is not there."""
        ticks = struct.unpack("<Q", self._fixed.get(tag, bytes(8)))[0]
        try:
            # Windows counts from 1601, in tenths of a microsecond.
            return _spoken(dt.datetime(1601, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=ticks // 10)) if ticks else ""
        except OverflowError:
            return ""

    @functools.cached_property
    def _fixed(self) -> dict[int, bytes]:
        path = [*self.path, "__properties_version1.0"]
        data = self.ole.openstream(path).read() if self.ole.exists(path) else b""
        entries = (data[at : at + 16] for at in range(self.header, len(data) - 15, 16))
        return {struct.unpack("<H", entry[2:4])[0]: entry[8:] for entry in entries}


def _outlook_mail(data: bytes) -> _Mail:
    try:
        import olefile
    except ImportError as error:
        raise MissingPackage(f"olefile cannot be imported: {error}.", "Run `make venv` again.") from error
    try:
        ole = olefile.OleFileIO(data)
        storages = {tuple(path) for path in ole.listdir(streams=False, storages=True)}
        if not ole.exists("__properties_version1.0"):
            raise ParseFailed("broken_file", "The file is no mail of Outlook.", "Give the file the suffix of what it is.")
        return _from_storage(ole, storages, (), 32)
    except RecursionError:
        raise _too_deep() from None
    except (OSError, struct.error, IndexError, ValueError, TypeError, AttributeError) as error:  # olefile on a damaged file
        raise ParseFailed("broken_file", f"The mail is damaged: {error}.", "Save it again from Outlook.") from error


def _from_storage(ole: Any, storages: set[tuple[str, ...]], path: tuple[str, ...], header: int) -> _Mail:
    top = _Storage(ole, path, header)
    top = _Storage(ole, path, header, top.number(0x3FFD) or top.number(0x3FDE) or 1252)
    mail = _Mail(subject=" ".join(top.text(0x0037).split()))
    mail.about = _outlook_about(top, [_Storage(ole, inner, 8, top.codepage) for inner in _inside(storages, path, "__recip_version1.0_")])
    group: list[_Body] = []
    if plain := top.text(0x1000):
        group.append(("plain", plain))
    if page := top.text(0x1013):
        group.append(("html", page))
    elif page_bytes := top.binary(0x1013):
        group.append(("html", _text(page_bytes, _codepage(top.number(0x3FDE) or top.codepage), html=True)))
    elif not group and (packed := top.binary(0x1009)):
        group.append(("rtf", _unpack_rtf(packed).decode("latin-1")))
    mail.bodies = [body for body in _choose(group) if body[1].strip()]
    shown = {found.lower() for kind, text in group if kind == "html" for found in re.findall(r"\bcid:([^\"'\s>)]{1,300})", text)}
    kind = top.text(0x001A).lower()
    for inner in _inside(storages, path, "__attach_version1.0_")[:_MAX_PARTS]:
        part = _Storage(ole, inner, 8, top.codepage)
        name = part.text(0x3707) or part.text(0x3704) or part.text(0x3001)
        content_id = part.text(0x3712).strip("<>").lower()
        mime = part.text(0x370E).lower()
        embedded = (*inner, "__substg1.0_3701000D")
        if kind == "ipm.note.smime.multipartsigned" and mime in ("multipart/signed", ""):
            signed = _mail(_message(part.binary(0x3701) or b""))  # the mail itself lies in its only attachment
            mail.bodies, mail.attachments = signed.bodies, signed.attachments
        elif (kind.startswith("ipm.note.smime") and name.endswith(".p7m")) or name == "message.rpmsg":
            mail.encrypted = True
        elif mime in _SIGNATURES or (content_id in shown and content_id):
            mail.encrypted |= mime == "application/pgp-encrypted"
        elif embedded in storages and ole.exists([*embedded, "__properties_version1.0"]):
            mail.attachments.append(_embedded(_from_storage(ole, storages, embedded, 24), name))
        elif ole.exists([*inner, "__substg1.0_37010102"]):
            number = len(mail.attachments) + 1
            name = name or f"attachment-{number}{_suffix(mime) or '.bin'}"
            mail.attachments.append(_Attachment(name, functools.partial(_outlook_bytes, part)))
    if mail.encrypted:  # Outlook then writes an empty RTF
        mail.bodies = [body for body in mail.bodies if body[0] != "rtf"]
    return mail


def _inside(storages: set[tuple[str, ...]], path: tuple[str, ...], prefix: str) -> list[tuple[str, ...]]:
    return sorted(inner for inner in storages if inner[:-1] == path and inner[-1].startswith(prefix))


def _outlook_about(top: _Storage, receivers: list[_Storage]) -> list[tuple[str, str]]:
    sender = _address(top.text(0x0C1A) or top.text(0x0042), top.text(0x5D01) or top.text(0x0C1F) or top.text(0x0065))
    lists: dict[int, list[str]] = {}
    for receiver in receivers[:1000]:
        address = _address(receiver.text(0x3001), receiver.text(0x39FE) or receiver.text(0x3003))
        lists.setdefault((receiver.number(0x0C15) or 0) & 0xF, []).append(address)
    about = [
        ("From", sender),
        ("To", _some(", ".join(lists.get(1, ())) or top.text(0x0E04))),
        ("Cc", _some(", ".join(lists.get(2, ())) or top.text(0x0E03))),
        ("Date", top.time(0x0039) or top.time(0x0E06)),
    ]
    # The headers it travelled with know the sender's own address and time zone; a draft has none.
    if headers := top.text(0x007D):
        travelled = dict(_about(email.message_from_string(headers, policy=_Policy()), "")[0])
        about = [(name, travelled.get(name) or value) for name, value in about]
    return [*about, ("Begins", top.time(0x0060)), ("Ends", top.time(0x0061))]


def _address(name: str, address: str) -> str:
    # Within a company Outlook knows people by a directory path, which is nothing to read.
    if not address or address.startswith("/") or address == name:
        return name or address.rpartition("=")[2]
    return f"{name} <{address}>" if name else address


def _outlook_bytes(part: _Storage, limit: int) -> bytes:
    content = part.binary(0x3701) or b""
    if len(content) > limit:
        raise ParseFailed("too_large", f"The attachment is larger than {spoken_size(limit)}.", "Save it into the folder.")
    return content


def _embedded(mail: _Mail, name: str) -> _Attachment:
    """A mail inside an Outlook mail is a part of its file and no file of its own: it is written as one, as .eml."""

    def read(limit: int) -> bytes:
        outer = MIMEMultipart()
        outer["Subject"] = Header(mail.subject, "utf-8")
        for key, value in mail.about:
            if value:
                outer[key] = Header(" ".join(value.split()), "utf-8")
        for kind, text in mail.bodies:
            part = MIMEApplication(text.encode("latin-1"), "rtf") if kind == "rtf" else MIMEText(text, kind, "utf-8")
            outer.attach(part)
        left = limit
        for item in mail.attachments:
            content = item.read(left)
            left -= len(content)
            part = MIMEApplication(content)
            part.add_header("Content-Disposition", "attachment", filename=("utf-8", "", item.name))
            outer.attach(part)
        # The same bytes each time: a document is known by its hash.
        outer.set_boundary("part-" + hashlib.sha256(repr((mail.subject, mail.about, mail.bodies)).encode("utf-8", "replace")).hexdigest())
        content = outer.as_bytes()
        if len(content) > limit:
            raise ParseFailed("too_large", f"The mail inside is larger than {spoken_size(limit)}.", "Save it into the folder.")
        return content

    name = re.sub(r"[/\\]", "-", name or mail.subject)[:120] or "mail"
    return _Attachment(re.sub(r"\.(msg|eml)$", "", name, flags=re.IGNORECASE) + ".eml", read)


def _codepage(number: int) -> str:
    """The charset of a Windows code page number."""
    special = {
        65001: "utf-8", 1200: "utf-16-le", 20127: "ascii", 20866: "koi8-r", 21866: "koi8-u", 38598: "iso8859-8", 50220: "iso2022_jp",
        50221: "iso2022_jp", 50222: "iso2022_jp", 51932: "euc_jp", 51949: "euc_kr", 52936: "gb18030", 54936: "gb18030",
    }  # fmt: skip
    return special.get(number) or (f"iso8859-{number - 28590}" if 28591 <= number <= 28606 else f"cp{number}")


# What every packed RTF may refer back to (MS-OXRTFCP 2.1.2).
_RTF_PRELOADED = (
    b"{\\rtf1\\ansi\\mac\\deff0\\deftab720{\\fonttbl;}{\\f0\\fnil \\froman \\fswiss \\fmodern \\fscript \\fdecor MS Sans SerifSymbolArial"
    b"Times New RomanCourier{\\colortbl\\red0\\green0\\blue0\r\n\\par \\pard\\plain\\f0\\fs20\\b\\i\\u\\tab\\tx"
)


def _unpack_rtf(packed: bytes) -> bytes:
    """The RTF of a mail that has no other body (MS-OXRTFCP: LZ77 over a ring of 4,096 bytes; at most 9 times its packed size)."""
    size, form = struct.unpack_from("<4xL4s", packed)
    if form == b"MELA":
        return packed[16 : 16 + size]
    ring = bytearray(_RTF_PRELOADED.ljust(4096, b"\0"))
    write, at, out = len(_RTF_PRELOADED), 16, bytearray()
    while at < len(packed):
        control, at = packed[at], at + 1
        for bit in range(8):
            if control >> bit & 1:
                if at + 2 > len(packed):
                    return bytes(out)
                reference, at = int.from_bytes(packed[at : at + 2], "big"), at + 2
                offset, length = reference >> 4, (reference & 0xF) + 2
                if offset == write:
                    return bytes(out)
            elif at < len(packed):
                ring[write], at = packed[at], at + 1
                out.append(ring[write])
                write = (write + 1) % 4096
                continue
            else:
                return bytes(out)
            for i in range(length):
                ring[write] = ring[(offset + i) % 4096]
                out.append(ring[write])
                write = (write + 1) % 4096
    return bytes(out)

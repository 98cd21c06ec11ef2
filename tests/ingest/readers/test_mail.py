"""Mails: headers as people read them, the body once, attachments as members; and mails that are broken or hostile."""

from __future__ import annotations

import base64
import hashlib
import struct
import time

import pytest

from ingest.parse import parse
from ingest.readers import mail
from rag.errors import ParseFailed


def blocks(parsed, kind):
    return [parsed.text[b.start : b.end] for b in parsed.blocks if b.kind == kind]


def eml(*parts: str, kind: str = "mixed", subject: str = "Plans") -> bytes:
    lines = [f"From: Ann <ann@example.org>\nSubject: {subject}\nMIME-Version: 1.0\nContent-Type: multipart/{kind}; boundary=b\n\n"]
    return ("".join(lines) + "".join(f"--b\n{part}\n" for part in parts) + "--b--\n").encode()


@pytest.fixture
def fixture(shared):
    def read(name: str):
        return parse(next((shared / "files").rglob(name)).read_bytes(), name)

    return read


def test_a_mail_is_headed_by_its_subject():
    parsed = parse(b"From: a@example.org\nTo: b@example.org\nDate: Wed, 16 Jul 2008 06:24:00 +0300\nSubject: Lunch\n\nAt noon?\n", "a.eml")
    assert parsed.title == "Lunch"
    assert next((b.kind, b.level, b.label) for b in parsed.blocks) == ("heading", 1, "Lunch")
    assert parsed.text == "Lunch\n\nFrom: a@example.org\nTo: b@example.org\nDate: 16 July 2008, 06:24 +0300\n\nAt noon?"


def test_every_real_mail_is_read(shared):
    """One is encrypted and one is 13 bytes of nothing; of the others who wrote them or what about is known."""
    folder = shared / "files"
    mails = [path for path in folder.rglob("*") if path.suffix in (".eml", ".msg")]
    assert len(mails) > 140
    outcome = {}
    for path in mails:
        try:
            parsed = parse(path.read_bytes(), path.name)
        except ParseFailed as error:
            outcome[path.name] = error.code
            continue
        assert parsed.title or "From:" in parsed.text or path.name in ("empty.eml",), path.name
        assert all(member.read(1 << 28) or member.path == "PGP_Cmts_on_12-14-01_Pkg.doc" for member in parsed.members), path.name
    assert outcome == {"fake-encrypted.eml": "encrypted", "fake-encrypted.msg": "encrypted"}


@pytest.mark.parametrize(
    ("name", "title", "words"),
    [
        ("email-no-utf8-2008-07-16.062410.eml", "RE: שלום", "אני חושב שזה לא יהיה מקצועי והוגן"),
        ("japanese_shift_jis.eml", "test", "このメールはテスト用のメールです。"),
        ("japanese_iso_2022.eml", "まみむめも", "すみません。"),
        ("raw_email.eml", "NOTE: 한국말로 하는 것", "우리는 하나님을 믿습니다."),
        ("invalid_subject_characters.eml", "Formação FrenetikPolis: Mega Campanha Final Verão | Cursos de Setembro", "TEST"),
        ("raw_email_with_partially_quoted_subject.eml", 'Re: Test: "漢字" mid "漢字" tail', "Jamis"),
        ("example14.eml", "Re: TEST テストテスト", "Date: 19 August 2011, 10:47 +0900"),
        ("example13.eml", "Saying Hello", "To: Mary Smith <mary@example.net>"),
        ("raw_email_incorrect_header.eml", "Stop adware/spyware once and for all.", "You are infected with"),
        ("fake-email-utf-16-le.eml", "Test Email", "Roses are red"),
        ("content_transfer_encoding_with_semi_colon.eml", "Attention", "3.45% Fixed Rate"),
        ("mime-html-only.eml", "Example HTML Only MIME Email", "Scott Fahlman in 1982"),
        (
            "fake-email-with-cc-and-bcc.msg",
            "Fake email with cc and bcc recipients",
            "Cc: steve@unstructured.io\nDate: 29 July 2024, 16:38 -0400",
        ),
        ("test_outlook_msg.msg", "Test Email Message", "From: M. C. Kurtuluş <muratcan.kurtulus@gmail.com>"),
    ],
)
def test_real_mails_say_what_they_said(fixture, name, title, words):
    parsed = fixture(name)
    assert parsed.title == title
    assert words in parsed.text


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("attachment_with_base64_encoded_name.eml", ["This is a test.pdf"]),
        ("attachment_with_quoted_filename.eml", ["Eelanalüüsi päring.jpg"]),
        ("japanese_attachment_long_name.eml", ["かきくけこ" * 5 + ".txt"]),
        ("attachment_nonascii_filename.eml", ["ciële.txt"]),
        ("attachment_content_location.eml", ["Photo25.jpg"]),
        ("mime-multipart-digest.eml", ["First Message.eml", "Second Message.eml", "Third Message.eml"]),
        ("raw_email7.eml", ["test.rb", "test.pdf"]),  # and not the signature
        ("fake-email-image-embedded.eml", []),  # the page shows it
        ("fake-email-attachment.msg", ["fake-attachment.txt"]),
    ],
)
def test_attachments_have_their_names(fixture, name, paths):
    parsed = fixture(name)
    assert [member.path for member in parsed.members] == paths
    assert not paths or parsed.text.endswith("Attachments: " + ", ".join(paths))


def test_an_attachment_has_its_bytes_and_a_limit(fixture):
    member = fixture("email-with-image.eml").members[0]
    content = member.read(1 << 20)
    assert (len(content), content[:8]) == (215758, b"\x89PNG\r\n\x1a\n")
    assert hashlib.sha256(content).digest() == hashlib.sha256(member.read(215758)).digest()
    with pytest.raises(ParseFailed) as caught:
        member.read(215757)
    assert caught.value.code == "too_large"


def test_a_mail_inside_is_a_member_that_can_be_read_again(fixture):
    inner = fixture("attachment_message_rfc822.eml").members[0]
    parsed = parse(inner.read(1 << 20), inner.path)
    assert parsed.members[0].path == "broken.pdf"
    assert parsed.members[0].read(1 << 20).startswith(b"%PDF-1.4")


def test_the_plain_text_is_taken_unless_it_is_a_stub():
    page = (
        "Content-Type: text/html\n\n<table><tr><th>Tea</th><th>Price</th></tr><tr><td>Green</td><td>3</td></tr></table>"
        + "<p>word</p>" * 60
    )
    both = parse(eml("Content-Type: text/plain\n\n" + "Green tea costs 3. " * 20, page, kind="alternative"), "a.eml")
    assert "word" not in both.text
    assert blocks(both, "table_row") == []
    stub = parse(eml("Content-Type: text/plain\n\nYour program cannot show this.", page, kind="alternative"), "a.eml")
    assert "Your program" not in stub.text
    assert blocks(stub, "table_row") == ["Tea: Green; Price: 3"]


def test_pictures_of_the_page_are_no_attachments_and_others_are():
    picture = (
        "Content-Type: image/png; name={0}.png\nContent-ID: <{0}>\nContent-Disposition: {1}\nContent-Transfer-Encoding: base64\n\niVBORw0K"
    )
    page = 'Content-Type: text/html\n\n<p>See <img src="cid:logo"></p>'
    parsed = parse(
        eml(page, picture.format("logo", "attachment"), picture.format("photo", "attachment"), picture.format("dot", "inline")), "a.eml"
    )
    assert [member.path for member in parsed.members] == ["photo.png"]


def test_attachments_without_a_name_get_one_with_the_suffix_of_their_kind():
    pdf = "Content-Type: application/pdf\nContent-Disposition: attachment\n\n%PDF-1.4"
    parsed = parse(
        eml("\nhello", pdf, pdf.replace("attachment", "attachment; filename=../../x/report"), "Content-Type: application/ms-tnef\n\nx"),
        "a.eml",
    )
    assert [member.path for member in parsed.members] == ["attachment-1.pdf", "report.pdf", "winmail.dat"]


def test_an_invitation_is_read_once():
    calendar = (
        "Content-Type: text/calendar; charset=utf-8{}\n\nBEGIN:VCALENDAR\n"
        "BEGIN:VTIMEZONE\nDTSTART:19700101T000000\nEND:VTIMEZONE\nBEGIN:VEVENT\n"
        'SUMMARY:Budget\\, second\n  round\nDTSTART;TZID="Europe/Paris":20240305T140000\nLOCATION:Room 4\n'
        'ATTENDEE;CN="Lee: B";RSVP=TRUE:mailto:lee@example.org\n'
        "BEGIN:VALARM\nDESCRIPTION:Reminder\nEND:VALARM\nEND:VEVENT\nEND:VCALENDAR"
    )
    parsed = parse(eml(calendar.format(""), calendar.format("; name=invite.ics")), "a.eml")
    event = "Event: Budget, second round\nBegins: 5 March 2024, 14:00 Europe/Paris\nWhere: Room 4\nInvited: Lee: B <lee@example.org>"
    assert parsed.text.endswith(event)
    assert parsed.text.count("Budget") == 1
    assert parsed.members == ()


@pytest.mark.parametrize(
    "mail_",
    [
        b"Subject: x\nContent-Type: application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m\n\nMIAG",
        b"Subject: x\n\n-----BEGIN PGP MESSAGE-----\n\nhQEMA\n-----END PGP MESSAGE-----\n",
    ],
)
def test_an_encrypted_mail_says_so(mail_):
    with pytest.raises(ParseFailed) as caught:
        parse(mail_, "a.eml")
    assert caught.value.code == "encrypted"


@pytest.mark.parametrize(
    ("charset", "text"),
    [("iso-8859-8", "שלום עולם"), ("iso-8859-8-i", "שלום עולם"), ("shift_jis", "①髙い"), ("us-ascii", "Größe"), ("x-none", "Größe")],
)
def test_a_body_is_decoded_as_declared_or_as_it_looks(charset, text):
    codec = {"shift_jis": "cp932", "us-ascii": "utf-8", "x-none": "utf-8", "iso-8859-8-i": "iso-8859-8"}.get(charset, charset)
    subject = f"=?{charset}?B?{base64.b64encode(text.encode(codec)).decode()}?="
    parsed = parse(f"Subject: {subject}\nContent-Type: text/plain; charset={charset}\n\n".encode() + text.encode(codec), "a.eml")
    assert parsed.title == text
    assert parsed.text.endswith(f"\n\n{text}")


def nested(depth: int) -> bytes:
    head = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i) for i in range(depth))
    return b"Subject: deep\n" + head + b"Content-Type: text/plain\n\nthe bottom\n"


def test_deep_nesting_is_read_or_refused_but_never_a_crash():
    assert parse(nested(50), "a.eml").text.endswith("the bottom")
    for deep in (nested(1000), b"Subject: x\nContent-Type: message/rfc822\n\n" * 1000):
        with pytest.raises(ParseFailed) as caught:
            parse(deep, "a.eml")
        assert caught.value.code == "too_deep"


def test_a_mail_of_too_many_parts_is_refused(monkeypatch):
    monkeypatch.setattr(mail, "_MAX_PARTS", 100)
    with pytest.raises(ParseFailed) as caught:
        parse(eml(*["Content-Type: text/plain\n\nx"] * 101), "a.eml")
    assert caught.value.code == "too_large"


def test_headers_that_the_library_takes_minutes_for_are_cut():
    """300,000 parameters took it 290 s."""
    begun = time.monotonic()
    parsed = parse(
        b"Subject: x\nTo: " + b"a@b.c, " * 100_000 + b"\nContent-Type: text/plain; " + b"a*0*=b; " * 300_000 + b"\n\nbody", "a.eml"
    )
    assert parsed.text.endswith("and more\n\nbody")
    assert time.monotonic() - begun < 60


def test_a_file_that_is_no_mail_is_refused():
    with pytest.raises(ParseFailed) as caught:
        parse(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10, "a.eml")
    assert caught.value.code == "binary_file"


MBOX = b"""From ann@example.org Mon Jan  1 10:00:00 2024
From: Ann <ann@example.org>
Subject: First

>From here to there.

From this line on it is still the first mail, at 10:00 sharp

From bob@example.org Tue Jan  2 11:00:00 2024
From: Bob <bob@example.org>
Subject: Re: a/b
Content-Type: multipart/mixed; boundary=b

--b

See the notes.
--b
Content-Type: text/plain; name=notes.txt

tea and cake
--b
Content-Type: text/plain; name=notes.txt

more tea
--b--

"""


def test_a_mailbox_is_one_document_of_headed_mails():
    parsed = parse(MBOX, "a.mbox")
    assert parsed.title is None
    assert blocks(parsed, "heading") == ["First", "Re: a/b"]
    assert "\n\nFrom here to there.\n\nFrom this line on" in parsed.text
    assert [(m.path, m.read(100)) for m in parsed.members] == [
        ("002 b/notes.txt", b"tea and cake"), ("002 b/notes (2).txt", b"more tea"),
    ]  # fmt: skip


def test_a_mail_that_cannot_be_read_does_not_hide_the_others_of_its_mailbox():
    parsed = parse(MBOX + b"From x@example.org Wed Jan  3 11:00:00 2024\n" + nested(1000) + b"\n" + MBOX, "a.mbox")
    assert blocks(parsed, "heading") == ["First", "Re: a/b"] * 2
    assert "(Mail 3 is left out. The mail's parts are nested too deeply to be read.)" in parsed.text
    assert [member.path for member in parsed.members][2:] == ["005 b/notes.txt", "005 b/notes (2).txt"]


def test_a_mailbox_counts_its_mails_as_it_goes():
    from ingest.parse import Options

    steps = []
    parse(MBOX, "a.mbox", Options(step=lambda done, of: steps.append((done, of))))
    assert steps == [(1, 2), (2, 2)]


def test_a_mailbox_without_mails_is_broken():
    with pytest.raises(ParseFailed) as caught:
        parse(b"just a note\n", "a.mbox")
    assert caught.value.code == "broken_file"


def test_packed_rtf_is_unpacked():
    """The example of MS-OXRTFCP 3.1.1."""
    packed = bytes.fromhex("2d0000002b0000004c5a4675f1c5c7a703000a007263706731323542320af32068656c090020627705b06c647d0a800fa0")
    assert mail._unpack_rtf(packed) == b"{\\rtf1\\ansi\\ansicpg1252\\pard hello world}\r\n"


def compound(tree: dict) -> bytes:
    """An OLE file (MS-CFB) of nested dicts. Streams are padded to 4,096 bytes, where those begin that need no mini stream."""
    entries, sectors, fat = [], [], []

    def add(name: str, value: dict | bytes) -> int:
        here = len(entries)
        entries.append([name, 5 if here == 0 else 1 if isinstance(value, dict) else 2, -1, -1, 0xFFFFFFFE, 0])
        if isinstance(value, dict):
            last = None
            for key, inner in value.items():
                child = add(key, inner)
                if last is None:
                    entries[here][3] = child
                else:
                    entries[last][2] = child
                last = child
        elif value:
            value = value.ljust(4096, b"\0")
            entries[here][4:] = [store(value), len(value)]
        return here

    def store(data: bytes) -> int:
        first = len(sectors)
        cut = [data[at : at + 512].ljust(512, b"\0") for at in range(0, len(data), 512)]
        sectors.extend(cut)
        fat.extend([*range(first + 1, first + len(cut)), 0xFFFFFFFE])
        return first

    add("Root Entry", tree)
    directory = b""
    for name, kind, right, child, start, size in entries:
        wide = name.encode("utf-16-le")
        directory += wide.ljust(64, b"\0") + struct.pack("<HBBiii36xLQ", len(wide) + 2, kind, 1, -1, right, child, start, size)
    first = store(directory + b"\0" * (-len(directory) % 512))
    count = 1
    while (len(sectors) + count) > count * 128:
        count += 1
    table = fat + [0xFFFFFFFD] * count
    table += [0xFFFFFFFF] * (count * 128 - len(table))
    begin = len(sectors)
    header = (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
        + bytes(16)
        + struct.pack("<HHHHH6xLLLLLLLLL", 0x3E, 3, 0xFFFE, 9, 6, 0, count, first, 0, 0, 0xFFFFFFFE, 0, 0xFFFFFFFE, 0)
    )
    header += struct.pack("<109L", *range(begin, begin + count), *[0xFFFFFFFF] * (109 - count))
    return header + b"".join(sectors) + struct.pack(f"<{len(table)}L", *table)


def properties(header: int, **numbers: int) -> bytes:
    return bytes(header) + b"".join(struct.pack("<HHLQ", 3, int(tag[1:], 16), 0, value) for tag, value in numbers.items())


def wide(text: str) -> bytes:
    return text.encode("utf-16-le")


def test_an_outlook_mail_of_an_old_code_page_with_a_mail_inside():
    inner = {
        "__properties_version1.0": properties(24),
        "__substg1.0_0037001F": wide("Inner / מכתב"),
        "__substg1.0_1000001F": wide("the inner text"),
        "__attach_version1.0_#00000000": {
            "__properties_version1.0": properties(8), "__substg1.0_3707001F": wide("tea.txt"), "__substg1.0_37010102": b"green" * 1000,
        },
    }  # fmt: skip
    outer = compound({
        "__properties_version1.0": properties(32, t3FFD=1255, t3FDE=28598),
        "__substg1.0_0037001E": "שלום".encode("cp1255"),
        "__substg1.0_0C1A001E": "דנה".encode("cp1255"),
        "__substg1.0_0C1F001E": b"dana@example.org",
        "__substg1.0_10130102": "<h1>כותרת</h1><p>גוף המכתב</p>".encode("iso-8859-8"),
        "__attach_version1.0_#00000000": {"__properties_version1.0": properties(8), "__substg1.0_3701000D": inner},
    })  # fmt: skip
    parsed = parse(outer, "a.msg")
    assert parsed.title == "שלום"
    assert "From: דנה <dana@example.org>" in parsed.text
    assert [(b.level, b.label) for b in parsed.blocks if b.kind == "heading"] == [(1, "שלום"), (2, "כותרת")]
    assert [member.path for member in parsed.members] == ["Inner - מכתב.eml"]
    content = parsed.members[0].read(1 << 20)
    assert content == parse(outer, "a.msg").members[0].read(1 << 20)  # a document is known by its hash
    again = parse(content, "inner.eml")
    assert again.title == "Inner / מכתב"
    assert "the inner text" in again.text
    assert [(member.path, member.read(5000)) for member in again.members] == [("tea.txt", b"green" * 1000)]

"""Text in the encodings of its time: whole, short, cut off, and said or not said by the file itself."""

from __future__ import annotations

import base64
import random
import time

import pytest

from ingest.parse import decode, parse

TEXTS = {
    "german": "Die Größe der Tür ist für schöne Möbel üblich, sagte er und öffnete sie mühsam.",
    "french": "Déjà vu: l'été à la plage, où les élèves mangeaient des crêpes près du château.",
    "polish": "Zapraszamy państwa na święto książki, które odbędzie się dziś w bibliotece.",
    "hebrew": "שלום לכולם, זהו מסמך קצר בעברית על הספרייה.",
    "russian": "Привет всем, это короткий документ о Городской библиотеке.",
    "greek": "Καλημέρα σε όλους, αυτό είναι ένα έγγραφο.",
    "arabic": "مرحبا بكم في المكتبة العامة",
    "japanese": "図書館の開館時間は午前九時から午後五時までです。月曜日は休館日です。",
    "katakana": "テスト,サーバー,データ\nカタログ,name,x",
    "chinese": "图书馆的开放时间是上午九点到下午五点。星期一闭馆,请注意。",
    "taiwanese": "圖書館的開放時間是上午九點到下午五點，星期一閉館。",
    "korean": "도서관 개관 시간은 오전 아홉 시부터입니다. 월요일은 휴관일입니다.",
}  # fmt: skip
LEGACY = [
    ("german", "cp1252"), ("french", "cp1252"), ("french", "iso8859_15"), ("polish", "cp1250"), ("polish", "iso8859_2"),
    ("hebrew", "iso8859_8"), ("hebrew", "cp1255"), ("russian", "cp1251"), ("russian", "koi8_r"), ("greek", "cp1253"),
    ("greek", "iso8859_7"), ("arabic", "cp1256"), ("japanese", "shift_jis"), ("japanese", "euc_jp"), ("japanese", "iso2022_jp"),
    ("katakana", "shift_jis"), ("katakana", "euc_jp"), ("chinese", "gb18030"), ("taiwanese", "big5"), ("korean", "euc_kr"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "encoding"), LEGACY)
@pytest.mark.parametrize("times", [1, 300])
def test_a_text_in_an_encoding_before_unicode_is_read(language, encoding, times):
    text = (TEXTS[language] + "\n") * times
    assert decode(text.encode(encoding)) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("language", TEXTS)
def test_unicode_is_read_with_and_without_its_mark(language, encoding):
    """Without the mark UTF-16 is told by its zeros, which a text of two Chinese characters need not have."""
    assert decode(TEXTS[language].encode(encoding)) == TEXTS[language]


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\0\0\xfe\xff"])
def test_big_and_little_endian_marks_are_followed(mark):
    encoding = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be", b"\xff\xfe\0\0": "utf-32-le", b"\0\0\xfe\xff": "utf-32-be"}[mark]
    assert decode(mark + "Tee für 3 €".encode(encoding)) == "Tee für 3 €"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("café", "cp1252"), ("Grüße aus Köln", "cp1252"), ("20 £ or 5 €", "cp1252"), ("¿Qué? ¡Año nuevo!", "cp1252"),
        ("It’s “quoted” – and more…", "cp1252"), ("x² + 3°C ± ½", "cp1252"), ("שלום לכולם", "iso8859_8"),
        ("עדכון Tesla", "iso8859_8"), ("Привет всем", "koi8_r"), ("Привет всем", "cp1251"), ("こんにちは", "shift_jis"),
        ("図書館の開館", "euc_jp"), ("안녕하세요", "euc_kr"),
    ],
)  # fmt: skip
def test_a_note_of_a_few_bytes_is_not_mangled(text, encoding):
    assert decode(text.encode(encoding)) == text


def test_what_a_file_says_of_itself_comes_first():
    greek = "α β"
    assert parse(f"<?xml version='1.0' encoding='iso-8859-7'?><a>{greek}</a>".encode("iso8859_7"), "a.xml").text == f"a: {greek}"
    assert greek in parse(f"#!/usr/bin/python\n# -*- coding: iso-8859-7 -*-\nx = '{greek}'\n".encode("iso8859_7"), "a.py").text
    # A wrong word about itself does not spoil what is UTF-8.
    assert parse("<?xml version='1.0' encoding='iso-8859-7'?><a>é</a>".encode(), "a.xml").text == "a: é"
    assert parse("<?xml version='1.0' encoding='nonsense'?><a>cafés et thés</a>".encode("cp1252"), "a.xml").text == "a: cafés et thés"


def test_a_text_cut_inside_a_character_keeps_the_rest():
    text = "Größe " * 20 + "€"
    assert decode(text.encode()[:-1]).startswith("Größe Größe")
    assert decode(text.encode("utf-16")[:-1]).startswith("Größe")


def test_bytes_at_random_are_no_text_and_take_no_time():
    noise = random.Random(3).randbytes(3_000_000)
    started = time.process_time()
    assert decode(noise) is None
    assert decode(noise.replace(b"\0", b"x")) is None
    assert decode(bytes(range(64)) * 100) is None
    assert time.process_time() - started < 10  # 0.3 s


def test_real_files_of_odd_encodings_are_read(shared):
    folder = shared / "files/unstructured"
    for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert parse((folder / f"fake-text-{name}.txt").read_bytes(), "a.txt").text.startswith("This is a test document to use for unit")
    hebrew = base64.b64decode((folder / "hebrew-text-base64-iso88598i.txt").read_bytes())
    assert decode(hebrew).startswith("עדכון Tesla - נדרשת חתימה")

"""Keys: made, shown once, looked up, rotated and revoked, by one process while another one serves; and kept out of logs."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rag.errors import InvalidInput, UnknownKey
from rag.settings import load
from server import cli
from server.app import ReadingRoom
from server.commands.keys import parse_span, parse_when
from server.keys import FILE, Keys, Redacting, any_keys, checked_origin, redact

SITE = {"kind": "site", "scopes": ["ask"], "domains": ["handbook"], "origins": ["https://www.example.org"]}


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The time of these keys."""
    return Clock()


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> Iterator[Keys]:
    """Those of a server."""
    keys = Keys(tmp_path / FILE, clock)
    yield keys
    keys.close()


def test_of_a_key_only_its_hash_is_kept(keys: Keys, tmp_path: Path) -> None:
    """Neither the file nor its log has the secret; the file is its owner's alone."""
    key, token = keys.create("program")
    assert keys.find(token) == key
    files = [path for path in tmp_path.iterdir() if path.name.startswith(FILE)]
    assert len(files) >= 2
    secret = token.rpartition(f"{key.id}_")[2].encode()
    assert len(secret) == 43
    for path in files:
        assert secret not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_two_keys_are_alike(keys: Keys) -> None:
    """The id in front is for recognising, and gives away nothing of the 256 bits behind it."""
    made = [keys.create(f"key {n}") for n in range(50)]
    assert len({token for _, token in made}) == len({key.id for key, _ in made}) == 50
    assert all(token.startswith(f"{key.prefix}_") for key, token in made)


@pytest.mark.parametrize("wrong", ["{}A", " {}", "", "\ud800", "{}\x00", "rrk_"])
def test_what_is_nearly_a_key_is_none(keys: Keys, wrong: str) -> None:
    """Letter by letter, and whatever somebody sends."""
    _, token = keys.create("program")
    assert keys.find(wrong.format(token)) is None
    assert keys.find(token[:-1]) is None


def test_what_another_process_does_counts_for_the_next_call(keys: Keys, tmp_path: Path) -> None:
    """Made, rotated and revoked elsewhere: no restart and no waiting."""
    other = Keys(tmp_path / FILE, keys._clock)
    assert not keys.exist
    key, token = other.create("program")
    assert keys.exist
    assert keys.find(token) == key
    _, new = other.rotate(key.id)
    assert keys.find(token) is None
    assert keys.find(new).id == key.id
    other.revoke(key.id)
    assert keys.find(new) is None
    assert not keys.exist
    other.close()


def test_a_look_up_reads_nothing_while_nothing_changes(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a known key and not for an unknown one: a flood of guesses does not touch the table."""
    _, token = keys.create("program")
    assert keys.find(token)
    monkeypatch.setattr(keys._database, "read", lambda *_: pytest.fail("the table was read"))
    for n in range(100):
        assert keys.find(token)
        assert keys.find(f"rrk_abcdefgh_{n}") is None


def test_a_rotated_key_keeps_its_id_and_the_old_secret_its_grace(keys: Keys, clock: Clock) -> None:
    """So that programs can be changed one after the other, and limits are not begun anew."""
    key, old = keys.create("program", plan="team", expires_at=clock.now + 10_000)
    rotated, new = keys.rotate("program", grace_s=60)
    assert (rotated.id, rotated.plan, rotated.expires_at) == (key.id, "team", key.expires_at)
    assert keys.find(old).id == keys.find(new).id == key.id
    clock.now += 60
    assert keys.find(old) is None
    assert keys.find(new).id == key.id
    _, newest = keys.rotate("program")
    assert keys.find(new) is None
    assert keys.find(newest)


def test_time_ends_a_key_and_does_not_open_the_door(keys: Keys, clock: Clock, tmp_path: Path) -> None:
    """An expired key is known as such, lets nobody in, and everybody still needs one. Its page may read that, after a restart too."""
    key, token = keys.create("widget", **SITE, expires_at=clock.now + 5)
    assert keys.find(token).state(clock.now) == "active"
    clock.now += 5
    assert keys.find(token).state(clock.now) == "expired"
    assert keys.exist
    with closing(Keys(tmp_path / FILE, clock)) as restarted:
        assert keys.site_origins == restarted.site_origins == {"https://www.example.org"}
    with pytest.raises(InvalidInput, match="expired"):
        keys.rotate(key.id)


def test_a_key_is_found_by_id_prefix_name_and_itself(keys: Keys) -> None:
    """For the commands; one that is revoked is not found any more, and its name is free again."""
    key, token = keys.create("back-up")
    for wanted in (key.id, key.prefix, "back-up", token):
        assert keys.get(wanted).id == key.id
    with pytest.raises(InvalidInput, match="already"):
        keys.create("back-up")
    keys.revoke("back-up")
    with pytest.raises(UnknownKey):
        keys.get(key.id)
    keys.create("back-up")
    assert [each.name for each in keys.all(revoked=True)] == ["back-up", "back-up"]
    assert len(keys.all()) == 1


def test_an_error_about_a_key_does_not_repeat_it(keys: Keys) -> None:
    """Somebody pastes the key where a name belongs; the message is printed and logged."""
    _, token = keys.create("one")
    keys.revoke("one")
    with pytest.raises(UnknownKey) as caught:
        keys.get(token)
    assert token[13:] not in caught.value.message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, "1 to 80"),
        ({"name": "a\nb"}, "printable"),
        ({"scopes": ["rule"]}, "no scope 'rule'"),
        ({"scopes": []}, "without a scope"),
        ({"domains": []}, "no domain"),
        ({"scopes": ["admin"], "domains": ["a"]}, "whole service"),
        ({"scopes": ["metrics"], "domains": ["a"]}, "whole service"),
        ({"expires_at": 1.0}, "expired already"),
        ({"origins": ["https://a.example"]}, "Only site keys"),
        ({**SITE, "origins": []}, "needs the origins"),
        ({**SITE, "domains": None}, "exactly one domain"),
        ({**SITE, "domains": ["a", "b"]}, "exactly one domain"),
        ({**SITE, "scopes": ["ask", "upload"]}, "public"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(keys: Keys, options: dict[str, Any], said: str) -> None:
    """Said with a remedy, and nothing is kept."""
    with pytest.raises(InvalidInput, match=said) as caught:
        keys.create(**{"name": "one", **options})
    assert caught.value.remedy
    assert keys.all(revoked=True) == []


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://Example.ORG", "https://example.org"),
        ("https://example.org:443/", "https://example.org"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://xn--bcher-kva.example:80", "http://xn--bcher-kva.example"),
    ],
)
def test_an_origin_is_kept_as_browsers_send_it(given: str, origin: str) -> None:
    """In small letters, without the usual port."""
    assert checked_origin(given) == origin


@pytest.mark.parametrize(
    "given",
    ["example.org", "https://example.org/page", "https://*.example.org", "null", "*", "ftp://a", "https://a@b", "https://a:x", "https://"],
)
def test_what_is_no_origin_is_refused(given: str) -> None:
    """No pattern either: a key that is good everywhere is no site key."""
    with pytest.raises(InvalidInput):
        checked_origin(given)


def test_a_bare_data_directory_has_no_keys_and_gets_no_file(tmp_path: Path) -> None:
    """The look before the server listens leaves nothing behind."""
    assert not any_keys(tmp_path)
    assert list(tmp_path.iterdir()) == []
    keys = Keys(tmp_path / FILE)
    keys.create("one")
    keys.close()
    assert any_keys(tmp_path)


# Logs


def test_no_log_has_a_key(keys: Keys) -> None:
    """In the message, the arguments, an exception's text or its traceback; what people need to recognise it stays."""
    key, token = keys.create("program")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Redacting("the-servers-key", ""))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.warning("called with %s and %r", token, {"Authorization": f"Bearer {token}"})
    log.warning(f"GET /?key={token} the-servers-key")
    try:
        raise RuntimeError(f"cannot use {token}", "the-servers-key")
    except RuntimeError:
        log.exception("it failed")
    log.warning("nothing to hide in %d of %s", 3, "these")
    text = stream.getvalue()
    assert token[13:] not in text
    assert "the-servers-key" not in text
    assert text.count(f"{key.prefix}_***") == 4
    assert "RuntimeError" in text
    assert "nothing to hide in 3 of these" in text


def test_redacting_leaves_other_text_alone() -> None:
    """A prefix alone is no secret."""
    text = "rrk_abcdefgh is revoked; rrs_abcdefgh, too; sk-abcdefghijklmnopqrstuvwxyz"
    assert redact(text) == text


# Commands


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process; returns its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpora" / "handbook").mkdir(parents=True)
    (tmp_path / "readingroom.toml").write_text("[plans.team]\nrequests_per_minute = 60\n")

    def run(*args: str) -> tuple[int, str, str]:
        status = cli.main(args)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_the_commands_make_list_rotate_and_revoke(run: Any, tmp_path: Path) -> None:
    """A key on standard output, all else on standard error, so that it can be piped; every act is in the audit log, no secret is."""
    status, out, err = run("keys", "create", "laptop", "--scope", "ask", "--domain", "handbook", "--expires", "30d", "--plan", "team")
    token = out.strip()
    assert (status, len(out.splitlines())) == (0, 1)
    assert "first key" in err
    status, out, _ = run("keys", "list", "--json")
    (item,) = json.loads(out)["items"]
    assert (item["name"], item["scopes"], item["domains"], item["plan"], item["state"]) == (
        "laptop",
        ["ask"],
        ["handbook"],
        "team",
        "active",
    )
    assert token.startswith(item["prefix"] + "_")
    assert token not in out
    assert "laptop" in run("keys", "list")[1]
    new = run("keys", "rotate", "laptop", "--grace", "1h")[1].strip()
    keys = Keys(tmp_path / ".readingroom" / FILE)
    assert keys.find(token).id == keys.find(new).id == item["id"]
    status, out, _ = run("keys", "revoke", item["id"])
    assert "last key" in out
    assert keys.find(new) is None
    keys.close()
    entries = json.loads(run("audit", "--json")[1])["items"]
    assert [(entry["act"], entry["target"]) for entry in entries] == [
        ("key.revoke", item["id"]),
        ("key.rotate", item["id"]),
        ("key.create", item["id"]),
    ]
    assert token[13:] not in json.dumps(entries)
    assert "key.create" in run("audit")[1]


def test_a_site_key_comes_with_the_line_for_the_page(run: Any) -> None:
    """Its plan has limits without being asked for."""
    status, out, err = run("keys", "create", "www", "--site", "--domain", "handbook", "--origin", "https://www.example.org")
    assert status == 0
    assert f'data-key="{out.strip()}"' in err
    (item,) = json.loads(run("keys", "list", "--json")[1])["items"]
    assert (item["kind"], item["plan"], item["scopes"]) == ("site", "site", ["ask"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("create", "x", "--domain", "nowhere"), "no domain 'nowhere'"),
        (("create", "x", "--plan", "gold"), "no plan 'gold'"),
        (("create", "x", "--expires", "soon"), "no time"),
        (("create", "x", "--site", "--domain", "handbook"), "origins"),
        (("revoke", "x"), "no key 'x'"),
        (("rotate", "x", "--grace", "long"), "no span"),
        (("usage", "--days", "0"), "no number of days"),
    ],
)
def test_a_mistake_is_said_with_its_remedy(run: Any, args: tuple[str, ...], said: str) -> None:
    """Exit 1; nothing is made."""
    status, out, err = run("keys", *args)
    assert (status, out) == (1, "")
    assert said in err
    assert json.loads(run("keys", "list", "--json")[1]) == {"items": []}


def test_usage_is_exported_for_programs_and_spreadsheets(run: Any, tmp_path: Path) -> None:
    """By day and key, with its name; a name that begins like a formula is not one."""
    (tmp_path / ".readingroom").mkdir()
    assert run("keys", "usage")[1] == "Nothing was used yet.\n"
    run("keys", "create", "=cmd()")
    (key,) = json.loads(run("keys", "list", "--json")[1])["items"]
    from server.quotas import FILE as USAGE
    from server.quotas import Meter
    from server.scopes import RULES, Caller

    meter = Meter(tmp_path / ".readingroom" / USAGE)
    meter.begin(Caller(key["id"], "", frozenset({"search"})), RULES["POST /rag/search"]).end()
    meter.close()
    (row,) = json.loads(run("keys", "usage", "--json")[1])["items"]
    assert (row["key"], row["name"], row["requests"], row["answers"]) == (key["id"], "=cmd()", 1, 0)
    head, line = run("keys", "usage", "--csv")[1].splitlines()
    assert head.startswith("day,key,name,requests,")
    assert f",{key['id']},'=cmd(),1," in line
    assert key["id"] in run("keys", "usage")[1]


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600), ("1y", 31_536_000)])
def test_spans_of_time(text: str, seconds: int) -> None:
    """Minutes to years."""
    assert parse_span(text) == seconds
    assert parse_when(text, 100.0) == 100 + seconds


@pytest.mark.parametrize("text", ["", "0d", "5", "d", "-1d", "1.5h", "5 days"])
def test_what_is_no_span_is_refused(text: str) -> None:
    """An expiry that is misread is worse than none."""
    with pytest.raises(InvalidInput):
        parse_span(text)


def test_a_date_is_its_first_moment_in_utc() -> None:
    """Unless it names a zone."""
    assert parse_when("2027-01-31", 0.0) == 1_801_353_600
    assert parse_when("2027-01-31T02:00:00+02:00", 0.0) == 1_801_353_600


def test_a_damaged_file_lets_nobody_in(tmp_path: Path) -> None:
    """It is said, not set aside: without it everybody would be let in."""
    from rag.errors import DatabaseBroken

    (tmp_path / FILE).write_bytes(b"this is no database at all" * 100)
    with pytest.raises(DatabaseBroken):
        Keys(tmp_path / FILE)
    with pytest.raises(DatabaseBroken):
        any_keys(tmp_path)
    room = ReadingRoom(load(env={}, flags={"data_dir": tmp_path, "corpora": tmp_path / "corpora"}))
    with pytest.raises(DatabaseBroken):
        room.start(index=False, engine=False)
    with pytest.raises(sqlite3.ProgrammingError):  # nothing is left open
        room.conversations.page(None)


def test_two_processes_make_keys_at_the_same_time(tmp_path: Path) -> None:
    """A name is given once, whoever comes first."""
    one, two = Keys(tmp_path / FILE), Keys(tmp_path / FILE)
    one.create("shared")
    with pytest.raises(InvalidInput, match="already"):
        two.create("shared")
    one.close()
    two.close()

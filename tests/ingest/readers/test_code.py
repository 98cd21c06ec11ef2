"""Source code: what becomes a heading in each language, what must not, and that a function stays whole."""

from __future__ import annotations

import time

import pytest

from ingest.chunk import chunk
from ingest.parse import Parsed, parse
from tests.ingest.conftest import HashEmbedder


def outline(source: str, name: str) -> list[str]:
    """The headings, indented by level."""
    parsed = parse(source.encode(), name)
    check(parsed)
    return ["  " * ((b.level or 1) - 1) + b.label for b in parsed.blocks if b.kind == "heading"]


def check(parsed: Parsed) -> None:
    """The blocks are in order, do not overlap, and hold every visible character."""
    at = 0
    for block in parsed.blocks:
        assert at <= block.start < block.end
        at = block.end
    covered = "".join(parsed.text[b.start : b.end] for b in parsed.blocks)
    assert "".join(covered.split()) == "".join(parsed.text.split())


PYTHON = '''"""A module."""

import os

# How warm it may get, in degrees.
LIMIT = 90


# Boils water.
@register
class Kettle(Base):
    """It boils."""

    volume = 1

    def fill(
        self,
        litres: float,
    ) -> None:
        """def not_a_function():"""
        def helper(): ...

        self.volume = litres

    class Lid:
        def open(self): return "class Fake:"

    colour = "red"


if os.name == "nt":
    async def boil(kettle):
        await kettle
else:
    boil = None

TAIL = 1
'''


def test_python_has_its_classes_and_functions_as_headings():
    assert outline(PYTHON, "a.py") == ["class Kettle", "  def fill", "  class Lid", "    def open", "def boil"]


def test_a_heading_carries_the_comment_and_the_decorators_above_it():
    parsed = parse(PYTHON.encode(), "a.py")
    heading = next(b for b in parsed.blocks if b.label == "class Kettle")
    assert parsed.text[heading.start : heading.end] == "# Boils water.\n@register\nclass Kettle(Base):"
    heading = next(b for b in parsed.blocks if b.label == "def fill")
    assert parsed.text[heading.start : heading.end].endswith("litres: float,\n    ) -> None:")


def chunks(source: str, name: str) -> dict[str, tuple[str, ...]]:
    hash_embedder = HashEmbedder()
    parsed = parse(source.encode(), name)
    done = chunk("doc", parsed, hash_embedder.count_tokens, hash_embedder.token_spans, chunk_tokens=200, max_tokens=256)
    return {c.text: c.heading for c in done.chunks}


def test_code_between_symbols_stands_under_none_of_them():
    found = chunks(PYTHON, "a.py")
    assert [path for text, path in found.items() if "LIMIT" in text] == [()]
    assert [path for text, path in found.items() if "TAIL" in text] == [()]
    assert [path for text, path in found.items() if "colour" in text] == [("class Kettle",)]
    assert [path for text, path in found.items() if "self.volume = litres" in text] == [("class Kettle", "def fill")]


def test_a_function_that_fits_is_one_chunk_with_its_signature():
    body = "".join(f"    step_{i} = {i}\n\n" for i in range(20))
    found = chunks(f"x = 1\n\n\ndef long():\n{body}    return 1\n\n\ny = 2\n", "a.py")
    assert f"def long():\n{body}    return 1" in found


def test_python_that_does_not_compile_is_outlined_by_its_indentation():
    source = (
        'print "old"\n\nclass A(object):\n    """\nclass Fake:\n    """\n    def run(self,\n            x):\n        print x\n\n'
        "    def stop(self): pass\n\n\ndef main():\n    pass\n\nX = 1\n"
    )
    assert outline(source, "a.py") == ["class A", "  def run", "  def stop", "def main"]
    assert [path for text, path in chunks(source, "a.py").items() if "X = 1" in text] == [()]


JAVASCRIPT = """// Engine of the page.
import { a } from "b"

/** Loads it. */
export async function load(url, { retries = 3 } = {}) {
  if (retries) { return fetch(url) }
  const inner = function () { return /function fake() {/.test(url) }
}

export default class Engine extends Base {
  #speed = 1
  constructor(options) {
    super(options)
  }
  static async start() {
    for (const x of y) { run(x) }
    return `class Fake { ${this.name} }`
  }
  get speed() { return this.#speed }
}

const add = (a, b) => {
  return a + b
}
const settings = { load() { return 1 }, deep: { x: 1 } }
describe("engine", () => { it("runs", () => { run() }) })
const tail = 1
"""

TYPESCRIPT = """export interface Shape<T> { area(): number }
enum Colour { Red }
namespace Geometry {
  export abstract class Box<T extends Shape<T>> implements Shape<T> {
    constructor(private readonly w: number) {}
    public area(): number {
      return this.w
    }
    private parse(raw: string): { a: number } {
      return JSON.parse(raw)
    }
  }
}
export const useBox = async (id: string): Promise<void> => {
  await id
}
type Alias = { a: string }
function isBox(x: unknown): x is Box { return true }
"""

GO = """package engine

// Reader reads.
type Reader struct {
	name string
}

type Source interface {
	Read(p []byte) (int, error)
}

// Read fills p.
func (r *Reader) Read(p []byte) (int, error) {
	if x := f(); x != nil {
		return 0, func() error { return nil }()
	}
	s := `func Fake() {`
	return 0, nil
}

func New(name string) interface{} {
	return &Reader{name: name}
}

func Map[K comparable](m map[K]int) []K { return nil }

var table = map[string]int{
	"a": 1,
}
"""

RUST = """//! Crate.
use std::fmt;

/// A point.
#[derive(Debug)]
pub struct Point<'a> { x: &'a str }

impl<'a> fmt::Display for Point<'a> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.x { "fn fake() {" => write!(f, "{}", 'x'), _ => { Ok(()) } }
    }
}

pub trait Draw { fn draw(&self); fn twice(&self) { self.draw() } }

mod inner {
    pub async fn run<T>(t: T) -> T where T: Clone { t }
}

macro_rules! square { ($x:expr) => { $x * $x }; }
enum Kind { A { x: u8 }, B }
"""

JAVA = """package a.b;

/** A service. */
@Service
public class UserService extends Base<User> implements Closeable {
    private final Map<String, List<User>> users = new HashMap<>() {{ put("a", null); }};
    static { init(); }

    @Autowired
    public UserService(Repo repo) {
        super(repo);
    }

    @GetMapping("/users/{id}")
    public <T> List<User> find(@PathVariable("id") long id) throws IOException, SQLException {
        for (User u : users) { if (u.ok()) { return null; } }
        Runnable r = () -> { run(); };
        return switch (id) { case 1 -> { yield null; } default -> null; };
    }

    interface Listener { void on(); }
    enum State { ON { int x() { return 1; } }, OFF }
}
record Point(int x, int y) { }
"""

C = """#include <stdio.h>
#define LOOP(x) for (;;) {

struct point { int x; };
static const int table[] = { 1, 2 };
MODULE("x")

/* Adds. */
static inline int
add(int a, int b)
{
    if (a) { return b; }
    while (1) { char c = '{'; }
    return a + b;
}
struct point *make(void) { return 0; }
int main(int argc, char **argv) {
    printf("int fake() {");
}
"""

CPP = """#pragma once
namespace geo { namespace inner {
template <class T, typename U = std::vector<T>>
class Box final : public Shape<T> {
 public:
  explicit Box(int w) : w_(w), h_{w} { init(); }
  ~Box() override { clear(); }
  int area() const noexcept override { return w_; }
  bool operator==(const Box& o) const { return true; }
  class Forward;
 private:
  int w_ = 1'000'000;
};
}}
enum class Colour : int { Red };
extern "C" {
void plain(void) { auto f = [](int x) { return x; }; }
}
template <typename T>
auto Box<T>::scale(T by) -> T
{
  const char* s = R"x(void fake() { )x";
  return by;
}
namespace { int hidden() { return 1; } }
"""

CSHARP = """using System;
namespace App.Core
{
    [Serializable]
    public sealed class Engine : Base, IDisposable
    {
        public int Speed { get; set; } = 1;
        public Engine(int speed) : base(speed) { Speed = speed; }
        [HttpGet("a")]
        public async Task<List<int>> LoadAsync(string path, int n = 3)
        {
            using (var f = Open(path)) { lock (f) { Run(); } }
            var s = @"class Fake { ";
            foreach (var x in y) { Use(x); }
            return null;
        }
        interface IPart { }
    }
    public record Point(int X, int Y) { }
}
"""

RUBY = """require "json"

# Boils.
module Kitchen
  class Kettle < Base
    LIMIT = <<~TEXT
      def fake
    TEXT
    def self.fill!(litres)
      litres.each do |l|
        puts l if l
      end
    end

    def full? = true

    private

    def to_s
      "def fake #{self}"
    end
  end
end

Kitchen::Kettle.new
"""

PHP = """<?php
namespace App\\Http;

/** A controller. */
#[Route("/x")]
abstract class UserController extends Controller
{
    private $x = ['a' => 1];
    public function show(int $id): ?View
    {
        if ($id) { return view("x {$id}"); }
        $f = function () use ($id) { return 1; };
        $s = <<<SQL
function fake() {
SQL;
    }
}
trait Helps { }
function helper(&$x) { return $x; }
"""

SWIFT = """import UIKit
protocol Drawable { func draw() }
/// A view.
final class Canvas: UIView, Drawable {
    var size: Int { return 1 }
    init?(frame: CGRect) {
        super.init(frame: frame)
    }
    func draw() {
        guard let x = y else { return }
        items.forEach { print("func fake() { \\($0)") }
    }
}
extension Canvas { static func make<T>(_ t: T) -> Canvas { Canvas() } }
struct P { let x: Int }
"""

KOTLIN = """package a
data class User(val name: String, val age: Int) {
    val adult: Boolean get() { return age > 17 }
    fun greet(to: String = "x"): String {
        return "Hi ${to.let { it }}"
    }
    companion object {
        fun of(name: String) = User(name, 0)
        fun empty(): User { return of("") }
    }
}
fun short() = 1
suspend fun <T> List<T>.second(): T {
    return listOf(1).map { it }.first()
}
object Registry { }
"""


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("a.js", JAVASCRIPT, ["function load", "class Engine", "  constructor()", "  start()", "  speed()", "const add"]),
        (
            "a.ts",
            TYPESCRIPT,
            ["interface Shape", "enum Colour", "namespace Geometry", "  class Box", "    constructor()", "    area()", "    parse()",
             "const useBox", "function isBox"],
        ),
        ("a.go", GO, ["type Reader", "type Source", "func Reader.Read", "func New", "func Map"]),
        (
            "a.rs",
            RUST,
            ["struct Point", "impl <'a> fmt::Display for Point<'a>", "  fn fmt", "trait Draw", "mod inner", "  fn run",
             "macro_rules! square", "enum Kind"],
        ),
        ("a.java", JAVA, ["class UserService", "  UserService()", "  find()", "  interface Listener", "  enum State", "record Point"]),
        ("a.c", C, ["struct point", "add()", "make()", "main()"]),
        (
            "a.hpp",
            CPP,
            ["namespace geo", "  class Box", "    Box()", "    ~Box()", "    area()", "    operator==()", "enum class Colour", "plain()",
             "Box::scale()", "hidden()"],
        ),
        (
            "a.cs",
            CSHARP,
            ["namespace App.Core", "  class Engine", "    Engine()", "    LoadAsync()", "    interface IPart", "  record Point"],
        ),
        ("a.rb", RUBY, ["module Kitchen", "  class Kettle", "    def self.fill!", "    def full?", "    def to_s"]),
        ("a.php", PHP, ["class UserController", "  function show", "trait Helps", "function helper"]),
        ("a.swift", SWIFT, ["protocol Drawable", "class Canvas", "  init", "  func draw", "extension Canvas", "struct P"]),
        ("a.kt", KOTLIN, ["class User", "  fun greet", "  companion object", "    fun empty", "fun second", "object Registry"]),
    ],
)  # fmt: skip
def test_each_language_has_its_symbols_as_headings(name, source, expected):
    """Strings, comments, calls, loops, closures, initialisers and forward declarations that look like symbols are in each sample."""
    assert outline(source, name) == expected


def test_a_file_without_symbols_of_ours_is_code_cut_at_blank_lines():
    for name in ("a.sql", "a.sh", "a.css", "a.ini", "a.vue"):
        parsed = parse(b"first {\n  x\n}\n\nsecond\n", name)
        assert [(b.kind, parsed.text[b.start : b.end]) for b in parsed.blocks] == [("code", "first {\n  x\n}"), ("code", "second")]


def test_unbalanced_code_loses_nothing():
    for name in ("a.js", "a.cpp", "a.rs", "a.php", "a.rb", "a.py"):
        for source in (
            "}}}} class A { void f( {{",
            "/* open",
            'x = "open\nclass A {\n',
            "class A {\n  f() {",
            "def f(\n",
            "`${`",
            "class A\n",
        ):
            check(parse(source.encode(), name))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a.min.js", "function f(a){if(a){return 1}}" * 170_000),
        ("a.js", "function f(a) {\n  if (a) { return `x` }\n}\n\n" * 18_000),
        ("a.cpp", "int f(int a) {\n  if (a) { return 'x'; }\n}\n\n" * 18_000),
        ("a.php", "<?php\n" + "function f($a) {\n  return \"{$a}\";\n}\n\n" * 18_000),
        ("a.py", "def f(a):\n    return a + 1\n\n\n" * 28_000),
        ("a.rb", "def f(a)\n  a + 1\nend\n\n" * 28_000),
        ("a.java", "{" * 500_000),
        ("a.go", "func f(" * 100_000),
        ("a.ts", "(" * 19_000 + "\n" + "a < " * 4_000 + "{"),
        ("a.py", "(" * 100_000),
        ("a.c", "/*\n" * 300_000),
        ("a.java", "class A { void f() " + "throws a " * 40 + "= {} }"),
        ("a.py", "if x:\n    pass\n" + "elif y:\n    pass\n" * 1_500),
        ("a.txt", " " * 2_000_000),
    ],
)  # fmt: skip
def test_large_minified_and_hostile_source_is_read_in_seconds(name, source):
    started = time.process_time()
    parse(source.encode(), name)
    assert time.process_time() - started < 6  # at most 2 here; quadratic searches take minutes

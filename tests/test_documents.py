# SPDX-License-Identifier: Apache-2.0
"""Documents are for readers: sentences stay short, numbers stand in tables, links and paths lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_WORDS = 35
MAX_NUMBERS = 4
DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "vllm_plugin/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]

# What makes a word a number: it starts with a digit. `sm_90a`, `H100` and `w13` are names; `2^-8`, `0.26` and `128x4`
# are one number each.
NUMBER = re.compile(r"(?<![\w.^/-])[-+]?\d[\w.,^%:/-]*")
DATE = re.compile(r"\b\d{4}-\d\d-\d\d\b")
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
# A path in backticks: it has a slash and an extension, or ends in a slash. Templates and globs name no one file.
PATH = re.compile(r"`([\w.-]+(?:/[\w.-]+)+/?|[\w.-]+/)`")


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def paragraphs(text: str) -> list[str]:
    """Prose only: without code, tables, headings and pictures; a list item is a paragraph."""
    found, current = [], []
    for line in [*without_fences(text).splitlines(), ""]:
        item = re.match(r"\s*(?:[-*]|\d+\.)\s+", line)
        apart = not line.strip() or line.startswith(("|", "#", "![", "    ", "<"))
        if current and (apart or item):
            found.append(" ".join(current))
            current = []
        if not apart:
            current.append(line[item.end() :] if item else line.strip())
    return found


def sentences(text: str) -> list[str]:
    return [
        sentence
        for paragraph in paragraphs(text)
        for sentence in re.split(r"(?<=[.!?])[*_)\"]*\s+(?=[A-Z`\[*(0-9])", LINK.sub(r"\1", paragraph))
        if re.search(r"\w", sentence)
    ]


def spoken(sentence: str) -> str:
    """As a reader hears it: code is one word, and so is a date."""
    return DATE.sub("date", re.sub(r"`[^`]*`", "code", sentence))


def too_heavy(sentence: str) -> str | None:
    words, numbers = len(spoken(sentence).split()), len(NUMBER.findall(spoken(sentence)))
    if words > MAX_WORDS:
        return f"{words} words; at most {MAX_WORDS}"
    if numbers > MAX_NUMBERS:
        return f"{numbers} numbers; at most {MAX_NUMBERS}"
    return None


@pytest.mark.parametrize("name", DOCUMENTS)
def test_sentences_can_be_read_once(name):
    heavy = [(too_heavy(sentence), sentence) for sentence in sentences((ROOT / name).read_text())]
    assert heavy, f"{name} has no prose"
    found = [f"{why}: {sentence}" for why, sentence in heavy if why]
    assert not found, f"{name}: shorten, or use a table:\n" + "\n".join(found)


def anchor(heading: str) -> str:
    """A heading's anchor, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(document: Path) -> list[str]:
    broken = []
    for _, target in LINK.findall(without_fences(document.read_text())):
        if "://" in target:
            continue
        file, _, part = target.partition("#")
        path = document.parent / file if file else document
        if not path.exists():
            broken.append(f"{target}: no such file")
        elif part and part not in map(anchor, re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)):
            broken.append(f"{target}: no such heading")
    return broken


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    broken = broken_links(ROOT / name)
    assert not broken, f"{name}: " + ", ".join(broken)


def named_paths(text: str) -> list[str]:
    """Paths in backticks that look like files or folders of the repository: the first folder is one of its own."""
    tops = {path.name for path in ROOT.iterdir()}
    found = PATH.findall(without_fences(text))
    files = [name for name in found if name.endswith("/") or re.search(r"\.\w+$", name)]
    return [name for name in files if name.split("/")[0] in tops]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name):
    built = ("build/", "target/", "dist/", ".venv")  # made by commands, not part of a clone
    missing = [
        path
        for path in named_paths((ROOT / name).read_text())
        if not path.startswith(built) and not (ROOT / path).exists()
    ]
    assert not missing, f"{name} names what is not there: {missing}"


def test_every_document_is_found_from_the_readme():
    linked = {target.partition("#")[0] for _, target in LINK.findall((ROOT / "README.md").read_text())}
    missing = [name for name in DOCUMENTS if name != "README.md" and name not in linked]
    assert not missing, f"README.md's table of documents lacks {missing}"


# The checks above, held to what they must find.
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two three.\n\n| a | table of 1 2 3 4 5 |\n\n```sh\ncode\n```\n", ["One.", "Two three."]),
        ("- an item\n- another,\n  which goes on\n", ["an item", "another, which goes on"]),
        ("A [link](to/there.md) reads. `Code` begins.", ["A link reads.", "`Code` begins."]),
        ("Rel-L2 is 2.9e-3 here. It was 4 us.", ["Rel-L2 is 2.9e-3 here.", "It was 4 us."]),
        ("# Heading 1 2 3 4 5 6\n\n    code 1 2 3 4 5 6\n", []),
    ],
)
def test_prose_is_told_from_the_rest(text, wanted):
    assert sentences(text) == wanted


@pytest.mark.parametrize(
    ("sentence", "heavy"),
    [
        ("It took 1, 2, 3 and 4 us.", False),
        ("It took 1, 2, 3, 4 and 5 us.", True),
        ("On an H100 with sm_90a, w13 and `1 2 3 4 5`, on 2026-11-22, it took 3.5 us.", False),
        ("word " * 35, False),
        ("word " * 36, True),
    ],
)
def test_a_heavy_sentence_is_found(sentence, heavy):
    assert (too_heavy(sentence) is not None) == heavy


def test_a_broken_link_and_a_missing_file_are_found(tmp_path):
    document = tmp_path / "document.md"
    document.write_text(
        "# A heading, with `code`\n\n[a](other.md) [b](#no) [c](#a-heading-with-code) `rust/none.rs` `a/b`\n"
    )
    assert broken_links(document) == ["other.md: no such file", "#no: no such heading"]
    assert named_paths(document.read_text()) == ["rust/none.rs"]

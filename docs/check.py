"""Checks the pages: links lead somewhere, and what is said of the code exists.

Run by ``make docs``; needs nothing but Python.  Checked are, in README.md, CONTRIBUTING.md,
CHANGELOG.md and all of docs/:

* links to files and to headings, within the project (``[text](file.md#heading)``);
* paths in `code`, if they begin with a folder of the project (``src/tardygrad/config.py``);
* names in `code` (``tardygrad.config.RunConfig``), by reading the source, not importing it;
* ``make TARGET`` and ``tardygrad COMMAND``, in `code` and at the beginning of lines of examples.

Where a name is only a pattern, write a part of it in capitals, in braces, with a * or an ellipsis:
such names are left alone.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md")
FOLDERS = ("src", "tests", "docs", "examples", "benchmarks", "studies", ".ci")
PACKAGE = "tardygrad"

FENCE = re.compile(r"^\s*(```+|~~~+)")
CODE = re.compile(r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)|^\[[^\]]+\]:\s+(\S+)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
PATTERN = re.compile(r"[*{}<>$…]|\.\.\.|[A-Z]{2,}")
COMMAND = re.compile(r"(?:^|&&\s*)(?:\$ )?(?:\.venv/bin/)?(make|tardygrad)((?:\s+[^;&|#]*)?)")
DOTTED = re.compile(rf"{PACKAGE}(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class Line:
    """One line of a page; ``fenced`` if it belongs to an example."""

    number: int
    text: str
    fenced: bool


def lines(markdown: str) -> Iterator[Line]:
    fence = ""
    for number, text in enumerate(markdown.splitlines(), 1):
        match = FENCE.match(text)
        if match and not fence:
            fence = match.group(1)
        elif match and match.group(1).startswith(fence) and text.strip() == match.group(1):
            fence = ""
        else:
            yield Line(number, text, bool(fence))


def anchors(markdown: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    found: set[str] = set()
    for line in lines(markdown):
        match = None if line.fenced else HEADING.match(line.text)
        if match:
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match.group(1))
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            number = 0
            while (unique := f"{slug}-{number}" if number else slug) in found:
                number += 1
            found.add(unique)
    return found


class Project:
    """What there is to be spoken of."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.source = self.root / "src"
        self._scopes: dict[Path, dict[str, ast.AST | None]] = {}

    def pages(self) -> list[Path]:
        return sorted({path for pattern in PAGES for path in self.root.glob(pattern)})

    def targets(self) -> set[str]:
        """The targets of the Makefile."""
        path = self.root / "Makefile"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        rules = re.findall(r"^([a-z][\w -]*):(?!=)", text, re.MULTILINE)
        return {target for rule in rules for target in rule.split()}

    def commands(self) -> set[str]:
        """The texts in the command line's source, its commands' names among them."""
        return {
            node.value
            for path in (self.source / PACKAGE / "cli").rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        } | {path.stem for path in (self.source / PACKAGE / "cli").glob("*.py")}

    def defines(self, dotted: str) -> bool:
        """Whether ``tardygrad.a.b.C.d`` is a module, or a name in one, or a member of a class."""
        parts = dotted.split(".")
        place = self.source
        while parts and ((place / parts[0]).is_dir() or (place / f"{parts[0]}.py").is_file()):
            place /= parts.pop(0)
        if not parts:
            return True
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        scope = self._scope(module)
        if parts[0] not in scope:
            return False
        owner = scope[parts[0]]
        if len(parts) == 1 or not isinstance(owner, ast.ClassDef) or owner.bases:
            # Of an object made elsewhere, or inherited by a class: that takes more than reading.
            return True
        return parts[1] in _members(owner)

    def _scope(self, module: Path) -> dict[str, ast.AST | None]:
        if module not in self._scopes:
            text = module.read_text(encoding="utf-8") if module.is_file() else ""
            self._scopes[module] = _names(ast.parse(text))
        return self._scopes[module]


def _names(body: ast.Module) -> dict[str, ast.AST | None]:
    """What the module's own statements bind, and what its ``__all__`` promises."""
    found: dict[str, ast.AST | None] = {}
    for node in ast.walk(body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update({(alias.asname or alias.name): None for alias in node.names})
    for node in body.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        for target in _assigned(node):
            found.setdefault(target, None)
            if target == "__all__":
                strings = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
                found.update({name: None for name in strings if isinstance(name, str)})
    return found


def _assigned(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _members(owner: ast.ClassDef) -> set[str]:
    members = {name for node in owner.body for name in _assigned(node)}
    for node in ast.walk(owner):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            members.add(node.name)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
            members.add(node.attr)
    return members


def broken_links(project: Project, page: Path, line: Line) -> Iterator[str]:
    if line.fenced:
        return
    for inside, definition in LINK.findall(CODE.sub("", line.text)):
        target = inside or definition
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.is_relative_to(project.root) or not path.exists():
            yield f"link to {target}: there is no such file"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text("utf-8")):
            yield f"link to {target}: there is no such heading"


def broken_references(project: Project, line: Line) -> Iterator[str]:
    spans = [] if line.fenced else [text.strip() for _, text in CODE.findall(line.text)]
    for text in [line.text.strip()] if line.fenced else spans:
        yield from _broken_commands(project, text)
    for text in spans:
        if PATTERN.search(text.split("(")[0]) and not DOTTED.match(text):
            continue
        path = re.split(r"::|:\d", text)[0]
        if re.fullmatch(r"[\w./-]+", path) and path.split("/")[0] in FOLDERS and "/" in path:
            if not (project.root / path).exists():
                yield f"`{text}`: there is no such file"
        elif (match := DOTTED.match(text)) and not project.defines(match.group()):
            yield f"`{text}`: there is no such name in the source"


def _broken_commands(project: Project, text: str) -> Iterator[str]:
    for program, rest in COMMAND.findall(text):
        words = [word for word in rest.split() if not PATTERN.search(word)]
        if program == "make":
            goals = (word for word in words if re.fullmatch(r"[a-z][\w-]*", word))
            for goal in goals:
                if goal not in project.targets():
                    yield f"`make {goal}`: the Makefile has no such target"
        elif words and re.fullmatch(r"[a-z]+", words[0]) and words[0] not in project.commands():
            yield f"`tardygrad {words[0]}`: there is no such command"


def problems(root: Path) -> Iterator[str]:
    """One line for each thing that is wrong, with page and line number."""
    project = Project(root)
    for page in project.pages():
        for line in lines(page.read_text(encoding="utf-8")):
            found = [*broken_links(project, page, line), *broken_references(project, line)]
            for problem in found:
                yield f"{page.relative_to(project.root)}:{line.number}: {problem}"


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    found = list(problems(root))
    for problem in found:
        print(problem)
    print(f"docs: {len(Project(root).pages())} pages, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""The floor plan of docs/contributing.md: which folder may import which, and that folders and page are the same."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TIERS = ("core", "host", "nodes")  # from below
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")


def modules() -> dict[tuple[str, ...], Path]:
    """Module path -> file, of the three tiers."""
    files = (f for tier in TIERS for f in (ROOT / tier).rglob("*.py"))
    return {f.relative_to(ROOT).with_suffix("").parts: f for f in files}


def imports(module: tuple[str, ...], file: Path, known) -> set[tuple[str, ...]]:
    """The modules of the pack that a module imports, wherever in its file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module[:len(module) - node.level] + tuple((node.module or "").split(".") if node.module else ())
            for alias in node.names:
                places = (base + (alias.name,), base, base + ("__init__",))
                found.add(next((p for p in places if p in known), base))
    return found


@pytest.fixture(scope="module")
def graph():
    known = modules()
    return {module: imports(module, file, known) for module, file in known.items()}


def room(module: tuple[str, ...], rooms) -> str:
    """core/attention for core/attention/matching.py, host for host/keys.py; a file may be a room of its own."""
    own = "/".join(module[:2])
    return own if len(module) > 2 or own in rooms else module[0]


def test_imports_go_down_the_tiers(graph):
    wrong = [(m, d) for m, targets in graph.items() for d in targets if d[0] not in TIERS[:TIERS.index(m[0]) + 1]]
    assert wrong == []


def test_no_circle(graph):
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_core_knows_no_comfyui():
    for file in (ROOT / "core").rglob("*.py"):
        names = [alias.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                  if isinstance(node, ast.ImportFrom) and not node.level]
        assert not [n for n in names if n.split(".")[0] in ("comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes")], file


def dotted(node: ast.AST) -> str:
    """`comfy.sample.sample_custom` of such an attribute; empty for any other expression."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def test_modules_import_the_parts_of_comfyui_that_they_use():
    """`comfy.x.y` works by chance if only another module has imported `comfy.x`: what is loaded first then decides."""
    wrong = []
    for file in (*modules().values(), *(ROOT / "commands").rglob("*.py"), *(ROOT / "tools").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        aliases = [alias for n in nodes if isinstance(n, ast.Import) for alias in n.names]
        imported = tuple(f"{a.name}." for a in aliases if not a.asname and "." in a.name)
        attributes = {name for n in nodes if isinstance(n, ast.Attribute) and (name := dotted(n)).startswith("comfy.")}
        names = {n for n in attributes if not any(other.startswith(f"{n}.") for other in attributes)}
        wrong += [(str(file.relative_to(ROOT)), n) for n in sorted(names) if not f"{n}.".startswith(imported)]
    assert wrong == []


@pytest.mark.parametrize("tier", ["core", "host"])
def test_rooms_import_only_rooms_below_them(graph, tier):
    """As the page states: `order` lists a tier's rooms from below. Files directly in the tier lie below all rooms."""
    stated = re.search(rf"^{tier}, from below: (.*)$", PAGE, re.M)[1]
    order = [tier, *(f"{tier}/{name}" for name in re.findall(r"`(\w+)`", stated))]
    assert {room(m, order) for m in graph if m[0] == tier} == set(order)
    foundations = {m[1] for m in graph if room(m, order) == tier} - {"__init__"}
    paragraph = re.search(rf"^- `{tier}`: (.*?)(?=^- |^$)", PAGE, re.M | re.S)[1]
    assert foundations == set(re.findall(r"`(\w+)\.py`", paragraph))
    wrong = {("/".join(m), "/".join(d)) for m, targets in graph.items() if m[0] == tier for d in targets
             if d[0] == tier and order.index(room(d, order)) > order.index(room(m, order))}
    assert wrong == set()


def test_every_stage_of_the_page_is_there():
    """Each row of the stage table: node modules, folders, pages and workflows by their paths."""
    table = PAGE.split("## Stages")[1].split("\n## ")[0]
    paths = re.findall(r"`((?:nodes|host|core|tests|docs|workflows)/[\w/.*-]+)`", table)
    assert len(paths) > 40
    assert [p for p in paths if not list(ROOT.glob(p))] == []


def test_the_checkout_s_name_is_no_module():
    """The root is a package for ComfyUI alone: under its folder's name it would hide a module of that name."""
    ours = [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(ROOT / "__init__.py")]
    assert ours == ["framepainter_pack"]

"""What lower layers may not know: cli/ and the pytest plug-in alone name options."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "harness/stepbench"
LOWER = ("records", "stats", "metrics", "report", "training", "measuring", "gate")
# An option within a sentence; what is passed on to git or pip is a word of its own.
OPTION = re.compile(r"(^|[\s(`'])--[a-z][a-z-]*[\s:;,.)`']")


def messages(path):
    """The texts in a module that are no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)


def test_messages_below_the_command_name_no_options():
    files = [PACKAGE / "store.py", *(p for name in LOWER for p in (PACKAGE / name).rglob("*.py"))]
    assert len(files) > 60
    told = [(path.name, text) for path in files for text in messages(path)]
    assert [(name, text) for name, text in told if OPTION.search(text)] == []


def test_an_option_in_a_sentence_is_seen():
    for text in ("--threads 2: there are", "leave --ranks out", "`x --accept` keeps it"):
        assert OPTION.search(text)
    for text in ("--porcelain", "--prefix=", "a -- b"):
        assert not OPTION.search(text)

"""The language rule: docstrings begin with a verb, and neither docstrings nor messages hold riddles."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dal

PACKAGE = Path(dal.__file__).parent

# Verbs that begin the docstring of a function. Add one that names an operation; what a function "gives", "tells" or
# "says", it returns.
_VERBS = """
Add Allow Annotate Answer Append Apply Ask Assign Attach Begin Bind Bound Build Call Cancel Carry Cast Change Check
Choose Clear Close Collect Combine Commit Compare Complete Compute Connect Convert Copy Correct Count Create Cut
Decide Decode Delete Describe Detect Do Download Draw Drop Edit Encode End Enter Estimate Evaluate Explain Export
Fetch Fill Find Finish Fit Fix Fold Follow Forget Format Freeze Gather Group Handle Hash Hold Import Index
Initialise Insert Install Interpolate Iterate Join Judge Keep Label Lay Leave Let Limit List Listen Load Lock Log
Look Make Map Mark Mask Measure Merge Migrate Mix Move Multiply Name Narrow Number Offer Open Order Pack Parse Pass
Perturb Pick Place Plan Play Predict Prefix Prepare Print Process Project Propose Prove Publish Pull Push Put Raise
Rank Reach Read Rebuild Receive Record Reduce Refuse Register Reindex Reject Release Remove Rename Render Repeat
Replace Replay Reply Report Request Require Reserve Reset Resolve Restore Retract Return Roll Round Run Sample Save
Scale Scan Schedule Score Search Seek Select Send Serve Set Shift Show Sign Simulate Skip Solve Sort Split Stage
Standardise Start State Stop Store Stream Submit Sum Summarise Suspend Swap Take Test Throw Time Track Train
Transform Translate Try Turn Undo Unpack Unstage Update Upload Use Validate Vectorise Verify Visit Wait Walk Warn
Watch Weigh Wrap Write Yield
"""
VERBS = frozenset(_VERBS.split())
# A docstring of a value or a class is a noun phrase, not a question.
QUESTIONS = frozenset({"How", "What", "Where", "Which", "Who", "Whoever", "Whose", "Why"})
# An error says what a value must be and what it is: "`name` must be ..., got ...; do ...".
EXPECTED = re.compile(r"\b(expected|came)\b", re.IGNORECASE)
RIDDLES = re.compile(r"\b(whoever|whatever|anew|so many|told|said)\b", re.IGNORECASE)


def rooms() -> list[str]:
    """Return the packages and modules directly in the package."""
    return sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")})


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str, bool]]:
    """Yield each documented node with its docstring, and whether that should begin with a verb."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, text, isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_value(node)


def is_value(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function is read like an attribute: its docstring is a noun phrase."""
    return any("property" in ast.unparse(each) for each in node.decorator_list)


def messages(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield the constant parts of the texts of all errors that are raised."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for part in ast.walk(node.exc):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part, part.value


def faults(room: str) -> list[str]:
    path = PACKAGE / room
    found = []
    for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        module, tree = source.relative_to(PACKAGE).as_posix(), ast.parse(source.read_text(encoding="utf-8"))
        for node, text, is_verb in docstrings(tree):
            where = f"{module}:{getattr(node, 'lineno', 1)} {getattr(node, 'name', '')}"
            first = text.split()[0].strip(".,:;")
            if first in QUESTIONS or (is_verb and first not in VERBS):
                found.append(f"{where}: begins with {first!r}")
            found += [f"{where}: holds {riddle!r}" for riddle in RIDDLES.findall(text)]
        for part, text in messages(tree):
            where = f"{module}:{getattr(part, 'lineno', 1)}"
            found += [f"{where}: the message holds {riddle!r}" for riddle in RIDDLES.findall(text)]
            found += [f"{where}: the message holds {word!r}: `name` must be" for word in EXPECTED.findall(text)]
    return found


@pytest.mark.parametrize("room", rooms())
def test_docstrings_begin_with_verbs_and_hold_no_riddles(room: str) -> None:
    found = faults(room)
    assert not found, "\n".join(found)


def test_faults_are_found() -> None:
    tree = ast.parse('def f():\n    """Say what whoever told."""\n    raise ValueError(f"so many {1} came")\n')
    (_, text, is_verb), *_ = docstrings(tree)
    assert is_verb
    assert text.split()[0] not in VERBS
    assert RIDDLES.findall(text) == ["whoever", "told"]
    assert [RIDDLES.findall(text) for _, text in messages(tree)] == [["so many"], []]
    assert [EXPECTED.findall(text) for _, text in messages(tree)] == [[], ["came"]]

"""Where a source tree's code is imported from, and whether it is a tree of this package."""

from __future__ import annotations

from pathlib import Path

# Where this package lies in a tree of its own repository.
PACKAGE = "harness/stepbench"


def import_roots(tree: Path) -> list[str]:
    """The folders to put on the path for a tree's code: `harness` and `src` where it has them.

    `harness` counts only where it holds this package: other projects have folders of that name.
    """
    roots = [tree]
    if (tree / "src").is_dir():
        roots.insert(0, tree / "src")
    if (tree / PACKAGE).is_dir():
        roots.insert(0, tree / "harness")
    return [str(root) for root in roots]


def lacks(tree: Path, today: Path, needed: str) -> str | None:
    """Why a tree cannot be measured by its own code, or None.

    A tree of this package's repository must bring the package, with the file `needed` in it; it is
    never measured by the installed one. `today` is the repository's working tree, which says whose
    repository it is. A tree of another project brings no package, and the installed one measures.
    """
    if not any((one / PACKAGE).is_dir() for one in (tree, today)):
        return None
    if (tree / PACKAGE / needed).is_file():
        return None
    return f"it has no {PACKAGE}/{needed}"

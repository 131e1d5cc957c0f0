"""Measure on a host that has Python and torch but no network, and pack what to bring home.

    python3 -m harness.bare_host --minutes 8 --wheels wheels -- --vary precision --rounds 8

Takes the arguments of `stepbench run` after `--`. Start it again to go on where the time ran out;
unpack the archive in the repository, where runs of many hosts lie side by side. Standard library
only: what stepbench needs beside torch is installed from a folder of wheels, into a folder of ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The modules that `stepbench run` imports, and the distributions they come in.
NEEDED = {
    "torch": "torch",
    "click": "click",
    "psutil": "psutil",
    "pynvml": "nvidia-ml-py",
    "rich": "rich",
    "scipy": "scipy",
    "tabulate": "tabulate",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, pack, and say how to go on; the exit code of `stepbench run`."""
    chosen = _parser().parse_args(arguments)
    site = ROOT / ".asv" / "site"
    if chosen.wheels:
        _install(chosen.wheels, site)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(site)))}
    sys.path.insert(0, str(site))
    missing = [name for module, name in NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        print(
            f"stepbench: this host lacks {', '.join(missing)}; put their wheels into a folder "
            "(pip download -d wheels …, on a host with a network) and name it with --wheels",
            file=sys.stderr,
        )
        return 2
    run = ["run", "--minutes", str(chosen.minutes), "--results", str(chosen.results), *chosen.run]
    done = subprocess.run([sys.executable, "-m", "harness.cli", *run], env=environ, check=False)
    if chosen.results.is_dir():
        _pack(chosen.results, chosen.pack)
        print(f"packed {chosen.pack}; unpack it in the repository: tar -xzf {chosen.pack.name}")
    return done.returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m harness.bare_host",
        description="Measure on a host without a network, in limited time, and pack the results.",
        epilog="Exit codes are those of `stepbench run`; 3: time ran out, start again.",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="start no case after so long")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--pack", type=Path, default=Path("stepbench-results.tar.gz"))
    parser.add_argument("run", nargs="*", help="after --: arguments of `stepbench run`")
    return parser


def _install(wheels: Path, site: Path) -> None:
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        sys.exit(f"stepbench: {wheels}: no wheels there")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--upgrade", "--target", str(site), *files], check=True)


def _pack(results: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as packed:
        for path in sorted(results.glob("*/*.jsonl")):
            packed.add(path, arcname=Path("results") / path.relative_to(results))


if __name__ == "__main__":
    sys.exit(main())

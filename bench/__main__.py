"""``python -m bench [NAME ...]``: run benchmarks, write their results, charts and the table.

Without a name all of them run, each in a process of its own. Must never be imported by the package.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import charts, readme, report, rivals
from bench.facts import file_system
from bench.harness import Settings, say
from bench.one import run_apart

BENCHMARKS = {
    "saves": "bench.saves",
    "loads": "bench.loads",
    "history": "bench.history",
    "stored": "bench.stored",
    "background": "bench.background",
    "commit": "bench.commit",
    "restore": "bench.restore",
    "growth": "bench.growth",
    "thinning": "bench.thinning",
    "open": "bench.opening",
    "memory": "bench.memory",
    "size": "bench.size",
    "dictionary": "bench.dictionary",
    "svi": "bench.svi",
    "shell": "bench.shell",
}
_HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 when every figure was taken (met or not), 2 on bad usage."""
    options = _parser().parse_args(arguments)
    names = options.names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        say(f"unknown benchmark {unknown[0]!r}: choose from {', '.join(BENCHMARKS)}")
        return 2
    results = options.out or (None if options.quick else _HERE / "results")
    for name in [] if options.report or options.readme else names:
        _run(name, options, results)
    if results is not None and not options.readme:
        _write_page(results, page=_HERE if options.out is None else results)
    if results is not None and options.out is None:
        _write_readme(results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes only to --out")
    parser.add_argument("--report", action="store_true", help="only write tables and charts again")
    parser.add_argument("--readme", action="store_true", help="only write the README's table again")
    parser.add_argument("--repetitions", type=int, help="interleaved repetitions (9; quick: 2)")
    parser.add_argument("--folder", type=Path, help="on the disk under test (a temporary folder)")
    parser.add_argument("--out", type=Path, help="results, charts and table go here (bench/)")
    return parser


def _run(name: str, options: argparse.Namespace, results: Path | None) -> None:
    command = f"python -m bench {name}" + (" --quick" if options.quick else "")
    with tempfile.TemporaryDirectory(prefix="paramstore-bench-", dir=options.folder) as folder:
        settings = Settings(
            folder=Path(folder).resolve(),
            repetitions=options.repetitions or (2 if options.quick else 9),
            runs=1 if options.quick else 3,
            quick=options.quick,
        )
        if file_system(settings.folder) == "tmpfs":
            say("warning: the folder is in memory, where fsync costs nothing; give --folder")
        result = run_apart(name, BENCHMARKS[name], command, settings)
    for table in result.tables:
        print("\n".join(report.section(table)), flush=True)
    if results is not None:
        report.write(result, results)


def _write_page(results: Path, page: Path) -> None:
    """The page of all tables, and the charts that it shows."""
    known = [results / f"{name}.json" for name in BENCHMARKS]
    found = [report.read(path) for path in known if path.exists()]
    if charts.drawable():
        for result in found:
            charts.draw(result, results)
    else:
        say(f"no charts without matplotlib: {rivals.INSTALL}")
    pictures = {result.name: results / f"{result.name}.png" for result in found}
    drawn = {
        name: path.relative_to(page).as_posix() for name, path in pictures.items() if path.exists()
    }
    (page / "RESULTS.md").write_text(report.markdown(found, drawn), encoding="utf-8")
    say(f"wrote {page.name}/RESULTS.md")


def _write_readme(results: Path) -> None:
    if absent := readme.missing(results):
        say(f"left README.md as it is: no results yet of {', '.join(absent)}")
        return
    readme.rewrite(_HERE.parent / "README.md", results)
    say("wrote the table of README.md")


if __name__ == "__main__":
    sys.exit(main())

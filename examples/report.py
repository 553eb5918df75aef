"""Ask a store what happened: its log, the history of one parameter, what changed up to the best.

    python examples/report.py cancer.db AutoNormal.locs.bias
    python examples/report.py digits.db 'net$$$0.weight' --metric accuracy

Needs neither the model nor the program that trained it, and may be run while it trains.
"""

from __future__ import annotations

import argparse

import paramstore


def report(store: paramstore.ParamStoreDict, name: str, *, metric: str, mode: str) -> None:
    log = store.log()
    print(log, end="\n\n")

    print(f"history of {name!r}")
    print(store.history(name), end="\n\n")

    first, best = log[-1], store.best(metric, mode)
    print(f"from the first snapshot to the one with the best {metric} ({best.metrics[metric]:.6g})")
    print(store.diff(first, best))


def main() -> None:
    parser = argparse.ArgumentParser(description="What happened in a store.")
    parser.add_argument("db", help="the store")
    parser.add_argument("name", help="the parameter whose history is wanted")
    parser.add_argument("--metric", default="elbo", help="what is best (default: %(default)s)")
    parser.add_argument("--mode", choices=["max", "min"], default="max", help="(%(default)s)")
    args = parser.parse_args()

    with paramstore.open(args.db, readonly=True) as store:
        report(store, args.name, metric=args.metric, mode=args.mode)


if __name__ == "__main__":
    main()

"""The paper's grid in miniature (`ufm.deep.mini`), trained: `python -m benchmarks.deep_mini`.

    python -m benchmarks.deep_mini --out runs                    train, or continue; may be killed any time
    python -m benchmarks.deep_mini --out runs --status           how far it is
    python -m benchmarks.deep_mini --out runs --collect          finished runs become records of the package
    python -m benchmarks.deep_mini --out runs --skip-shipped     only the runs that the package's records lack

On several cores start one process for each core with `taskset -c 0`, `taskset -c 1`, ...: each takes the next
run that no other process is training. The images are CIFAR-10, downloaded, or in `--data-dir`; `--data` takes
a folder or tar of class folders. The script needs the extra `deep`."""

from __future__ import annotations

from pathlib import Path

import click

from ufm import deep
from ufm.deep import _process, mini
from ufm.reproduce import STATEMENTS, Finding, _runner

_PATH = click.Path(path_type=Path)


def collected(out: Path, into: Path) -> None:
    """Copy what is finished, and say what the report now says of it."""
    new = mini.collect(out, into)
    print(f"{len(new)} new records in {into}: {mini.read(into).progress}")
    for row in STATEMENTS:
        if row.id.startswith("networks-"):
            found = Finding(row, tuple(_runner.measure(row, job) for job in row.jobs("full")))
            odd = "" if found.consistent else f"; `known` of this row is {row.known!r}: change it"
            print(f"{row.id}: {found.verdict}{odd}")


@click.command(help=__doc__.splitlines()[0])
@click.option("--out", type=_PATH, required=True, help="Folder of the runs.")
@click.option("--data", default="cifar10", show_default=True, help="cifar10, or class folders of its images.")
@click.option("--data-dir", type=_PATH, help="Folder of CIFAR-10, or for its download.")
@click.option("--skip-shipped", is_flag=True, help="Leave out the runs that the package's records contain.")
@click.option("--status", is_flag=True, help="Print the progress; train nothing.")
@click.option("--collect", is_flag=True, help="Write finished runs as records of the package; train nothing.")
@click.option("--changed", is_flag=True, help="Continue interrupted runs that other code began.")
def main(
    out: Path,
    data: str,
    data_dir: Path | None,
    skip_shipped: bool,
    status: bool,
    collect: bool,
    changed: bool,
) -> None:
    if status:
        print(deep.sweep_status(out))
        return
    if collect:
        collected(out, mini.SHIPPED)
        return
    _process.keep_freed_memory()  # as `ufm train` does
    made = mini.plan(out, data, data_dir=data_dir, skip_shipped=skip_shipped)
    print(mini.train(made, resume="changed" if changed else True))


if __name__ == "__main__":
    main()

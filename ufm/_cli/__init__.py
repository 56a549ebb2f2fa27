"""The command line: `ufm solve | verify | sweep | landscape | train | figures | reproduce`."""

from __future__ import annotations

import click

import ufm
from ufm._cache import keep_small_programs
from ufm._cli._group import OneLine

#: the shelf of commands
COMMANDS = {
    "solve": "_solving:solve",
    "verify": "_solving:verify",
    "sweep": "_solving:sweep",
    "landscape": "_landscape:landscape",
    "train": "_deep:train",
    "figures": "_deep:figures",
    "reproduce": "_reproduce:reproduce",
}


@click.group(
    cls=OneLine,
    commands_of=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(ufm.__version__, prog_name="ufm")
def main() -> None:
    """The unconstrained feature model of neural collapse: solved, certified and measured.

    \b
    ufm verify --loss all                     every claim of Theorem 1, for every loss
    ufm solve --loss ls --K 10 --d 64         one problem
    ufm sweep --lam 1e-4:1e-1:20 --seeds 5    across the collapse threshold
    ufm landscape --K 5 --d 2 --n 1 --search  critical points, their Hessians, Theorem 2
    ufm train --net small_resnet --loss all   deep networks, and the same metrics on them
    ufm figures runs                          the paper's figures from the runs that exist
    ufm reproduce --quick                     what the paper claims of the model, measured, as a page

    Exit status: 0 yes (converged, all claims hold), 1 no, 2 misuse.  Progress goes to standard error;
    --quiet silences it.  Compiled programs are kept between runs in $JAX_COMPILATION_CACHE_DIR or the
    user's cache folder; UFM_CACHE=0 turns that off.
    """
    keep_small_programs()

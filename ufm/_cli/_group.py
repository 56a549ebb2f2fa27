"""The group of commands: one line for misuse, and the exit status."""

from __future__ import annotations

import sys
from typing import Any

import click


class OneLine(click.Group):
    """A group whose commands return their exit status, and which tells misuse in one line, status 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            status = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            status = 2
        except click.ClickException as error:
            status = _misuse(error.format_message())
        except (ValueError, OSError) as error:
            status = _misuse(str(error))
        except (click.Abort, KeyboardInterrupt):
            click.echo("ufm: interrupted", err=True)
            status = 130
        sys.exit(status)


def _misuse(message: str) -> int:
    click.echo(f"ufm: {' '.join(message.split())}", err=True)
    return 2

"""The group of commands: one line for misuse, and the exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import click
import jax

from ufm import _progress


class OneLine(click.Group):
    """A group whose commands return their exit status, and which tells misuse in one line, status 2.

    Commands are named as "module:attribute" and imported when they run, so that a
    command does not wait for what it does not use.
    """

    def __init__(self, *args: Any, commands_of: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = dict(commands_of or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were named."""
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in self._places:
            return None
        module, attribute = self._places[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(f"ufm._cli.{module}"), attribute)
        return command

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


class Shown(click.Command):
    """A command whose progress is shown, unless it is --quiet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        words = "No progress on standard error."
        self.params.append(click.Option(["--quiet"], is_flag=True, help=words))

    def invoke(self, ctx: click.Context) -> Any:
        """Run, with progress."""
        with _progress.command(str(self.name), quiet=ctx.params.pop("quiet")):
            return super().invoke(ctx)


class Computing(Shown):
    """A command that computes: it needs a device, and says so before anything else."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run, if JAX has a device."""
        need_device()
        return super().invoke(ctx)


def need_device() -> None:
    """Let JAX find its devices, which it does at the first computation at the latest.

    Raises:
        ValueError: it has none of the platform that was asked for.
    """
    try:
        jax.devices()
    except Exception as error:  # a RuntimeError, or where only the plug-in is missing an AssertionError
        why = (
            str(error).partition("(set JAX_PLATFORMS")[0].strip() or "JAX has no working support for it here"
        )
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(
            f"JAX_PLATFORMS: expected a platform with a device on this machine, got {asked!r} ({why}); "
            "unset it to take what there is, or set it to cpu"
        ) from error


def _misuse(message: str) -> int:
    click.echo(f"ufm: {' '.join(message.split())}", err=True)
    return 2

"""The command line: its group of commands and its exit status. Imports late, so that it answers at once."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Any

import click

from ..commands import conflict, conflicts, load_command, plugin_commands
from ..errors import FtkitError, InputError, Problem
from ..lang import LANGUAGES, VARIABLE
from ..terminal import use_readable_escapes
from . import doctor, export, installed, reproduce, results, run, runs, sweep, use
from .show import echo, print_json, show_error

_OWN = (
    run.run, run.check, run.preview, run.cancel, sweep.sweep,
    results.score, results.report,
    use.chat, use.predict,
    runs.runs, runs.open_, runs.rm, runs.clean,
    reproduce.rerun, reproduce.diff, reproduce.verify, reproduce.pack,
    export.export,
    doctor.doctor, installed.recipes, installed.plugins, installed.schema,
)  # fmt: skip


class _Commands(click.Group):
    """ftkit's own commands, and those of plugins: listed from metadata, imported when they are called or described."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*super().list_commands(context), *(name for name in plugin_commands() if name not in self.commands)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        own = super().get_command(context, name)
        if own is not None:
            return own
        entries = plugin_commands().get(name)
        command: click.Command | None = load_command(entries) if entries else None
        return command

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        if args[0] in self.commands and args[0] in plugin_commands():
            text = conflict(args[0], plugin_commands()[args[0]], own=True)
            echo(f"warning: {text}; ftkit's own is used", err=True)
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            from ..text import nearest

            near = nearest(args[0], self.list_commands(context))
            hint = f"did you mean {near!r}?" if near else "`ftkit --help` lists the commands"
            raise InputError(f"no command {args[0]!r}", hint) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, command.get_short_help_str(90)) for name, command in self.commands.items()]
        brought = [(name, self._described(context, name)) for name in plugin_commands() if name not in self.commands]
        for title, rows in (("Commands", own), ("Commands of plugins", brought)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        for text in conflicts(self.commands):
            formatter.write_paragraph()
            formatter.write_text(f"Refused: {text}; uninstall one of them.")

    def _described(self, context: click.Context, name: str) -> str:
        """Return the help line of a plugin's command, or why there is none."""
        try:
            command = self.get_command(context, name)
        except InputError as error:
            return error.message
        return command.get_short_help_str(90) if command is not None else ""


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="ftkit", message="%(package)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries print.")
@click.pass_context
def ftkit(context: click.Context, debug: bool) -> None:
    """Fine-tune a language model from one recipe, and prove that it helped."""
    context.obj = debug


for _command in _OWN:
    ftkit.add_command(_command)


def _check_language() -> None:
    chosen = os.environ.get(VARIABLE)
    if chosen and chosen not in LANGUAGES:
        raise InputError(f"{VARIABLE}={chosen}: no such language", f"choose one of {', '.join(LANGUAGES)}")


def main() -> None:
    """Run the command line: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted and resumable."""
    use_readable_escapes(sys.stdout, sys.stderr)
    atexit.register(gc.freeze)  # Python would search all objects for cycles at its exit: 2 s where torch is imported
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]  # it may stand anywhere
    as_json = "--json" in arguments
    try:
        _check_language()
        ftkit.main(["--debug", *arguments] if debug else arguments, prog_name="ftkit", standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        if as_json:
            print_json({"ok": False, "errors": [Problem(error.format_message()).to_dict()]})
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except FtkitError as error:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending: one more Ctrl-C must not hide the message
        if debug:
            import traceback

            traceback.print_exc()
        show_error(error, as_json)
        sys.exit(error.exit_status)
    except Exception as error:
        if debug:
            raise
        echo(f"error: {type(error).__name__}: {error}", err=True)
        echo("  this looks like a defect of ftkit: run again with --debug", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The command line: a thin layer over `ftkit.notebook`. Imports late, so that it answers at once."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from .cli_show import (
    checked_as_dict,
    headlines,
    plugins_as_dict,
    print_example,
    print_json,
    print_metrics,
    print_plugins,
    print_report,
    print_runs,
    problems_in,
    show_count,
    show_error,
    show_findings,
)
from .errors import FtkitError, InputError, Problem


class _Commands(click.Group):
    """ftkit's own commands, and those of plugins: listed from metadata, imported only when called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*super().list_commands(context), *sorted(e.name for e in _plugin_commands())]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        own = super().get_command(context, name)
        if own is not None:
            return own
        for entry in _plugin_commands():
            if entry.name == name:
                try:
                    command: click.Command = entry.load()
                except Exception as error:
                    raise InputError(
                        f"command {name!r} of {entry.dist and entry.dist.name} cannot be loaded: {error}"
                    ) from None
                return command
        return None

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(context), 1)
            hint = f"did you mean {near[0]!r}?" if near else "`ftkit --help` lists the commands"
            raise InputError(f"no command {args[0]!r}", hint) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, command.get_short_help_str(90)) for name, command in self.commands.items()]
        brought = [(e.name, f"from {e.dist.name if e.dist else e.value}") for e in _plugin_commands()]
        for title, rows in (("Commands", own), ("Commands of plugins", sorted(brought))):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _plugin_commands() -> list[Any]:
    import importlib.metadata

    return list(importlib.metadata.entry_points(group="ftkit.commands"))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="ftkit", message="%(package)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries print.")
@click.pass_context
def ftkit(context: click.Context, debug: bool) -> None:
    """Fine-tune a language model from one recipe, and prove that it helped."""
    context.obj = debug


def main() -> None:
    """Run the command line: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted and resumable."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]  # it may stand anywhere
    as_json = "--json" in arguments
    try:
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
        click.echo(
            f"error: {type(error).__name__}: {error}\n  this looks like a defect of ftkit: run again with --debug",
            err=True,
        )
        sys.exit(1)


_PREVIEWED = 2000  # rows whose lengths `preview` measures, about two seconds; `check` measures all

# ---------------------------------------------------------------- shared options

_set = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as backend.lora_r=8.",
)
_out = click.option(
    "--out", default="runs", type=click.Path(path_type=Path), help="Where run directories are made (default runs/)."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@ftkit.command()
@click.argument("recipes", nargs=-1)
@_set
@_out
@click.option("--resume", "resume_dir", metavar="RUN_DIR", help="Go on with an unfinished run; takes no recipe.")
@click.option("--on", "where", metavar="WHERE", help="Run elsewhere, through an installed launcher.")
@click.option("--dry-run", is_flag=True, help="Stop after everything was checked.")
@click.option("--yes", is_flag=True, help="Do not ask before money is spent (for backends that cost any).")
@click.option(
    "--create-again", is_flag=True, help="With --resume: your word that a remote job in doubt does not exist."
)
@click.option("--no-reuse", is_flag=True, help="Measure the baseline anew even where another run in --out has it.")
@_json
@click.pass_obj
def run(
    debug: bool, recipes: tuple[str, ...], overrides: tuple[str, ...], out: Path, resume_dir: str | None, where: str | None,
    dry_run: bool, yes: bool, create_again: bool, no_reuse: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure the base model, fine-tune, measure again, and write a report. Several recipes share one."""
    from .console import Console
    from .notebook import resume, run_all

    if bool(recipes) == bool(resume_dir):
        raise InputError(
            "name a recipe, or a run to --resume (and not both)", "`ftkit recipes` lists what ships with ftkit"
        )
    if resume_dir and (overrides or where or dry_run):
        raise InputError("--resume goes on with the run's own recipe: it takes no --set, no --on and no --dry-run")
    if create_again and not resume_dir:
        raise InputError("--create-again goes with --resume RUN_DIR")
    if where:
        from .plugins import installed_plugins

        installed_plugins().resolve("launcher", where.split(":")[0])
        raise InputError(f"--on {where}: this version of ftkit cannot run elsewhere yet")
    console = Console(debug)
    joint = None
    if dry_run:
        found = [_checked(name, overrides, debug) for name in recipes]
        print_json(found if len(found) > 1 else found[0]) if as_json else None
        sys.exit(0 if all(f["ok"] for f in found) else 2)
    if resume_dir:
        runs = [resume(resume_dir, console, yes, create_again)]
    else:
        runs, joint = run_all(recipes, overrides, out, not no_reuse, console, yes)
    folder = joint or runs[0].dir
    if as_json:
        data: dict[str, Any] = runs[0].to_dict() if len(runs) == 1 else {"runs": [r.to_dict() for r in runs]}
        if joint:
            data["report"] = str(joint)
        print_json(data)
    else:
        print_report(folder)


@ftkit.command()
@click.argument("recipes", nargs=-1, required=True)
@_set
@_json
@click.pass_obj
def check(debug: bool, recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Say everything that can be known before spending: recipe, data audit, labels, fit, price."""
    found = [_checked(name, overrides, debug) for name in recipes]
    if as_json:
        print_json(found if len(found) > 1 else found[0])
    sys.exit(0 if all(f["ok"] for f in found) else 2)


def _checked(name: str, overrides: tuple[str, ...], debug: bool) -> dict[str, Any]:
    """Check one recipe; print it for people on stderr and return it for programs."""
    import tempfile

    from .console import Console, escape
    from .notebook import load

    try:
        recipe = load(name, overrides)
    except InputError as error:
        click.echo(escape(str(error)), err=True)
        problems = problems_in(error)
        show_count(name, len(problems))
        return checked_as_dict(name, problems)
    from .preflight import preflight, problems_of

    with tempfile.TemporaryDirectory() as folder, Console(debug).quiet(Path(folder, "log")):
        found = preflight(recipe)
    problems = problems_of(recipe, found.findings)
    show_findings(name, found, problems)
    return checked_as_dict(name, problems, found.audit, found.estimate, found.control_estimates)


@ftkit.command()
@click.argument("recipe")
@_set
@click.option("--split", default="train", help="Which split the example is taken from.")
@click.option("--index", default=0, help="Which example, counted from 0.")
@_json
@click.pass_obj
def preview(debug: bool, recipe: str, overrides: tuple[str, ...], split: str, index: int, as_json: bool) -> None:
    """Show one training example as the model sees it, and which tokens are learned."""
    import tempfile
    from dataclasses import replace

    from .console import Console
    from .data import load_task
    from .notebook import load
    from .preflight import token_lengths

    loaded = load(recipe, overrides)
    with tempfile.TemporaryDirectory() as folder, Console(debug).quiet(Path(folder, "log")):
        task, _ = load_task(loaded)
        rows = task.splits.get(split, ())
        if not -len(rows) <= index < len(rows):
            raise InputError(f"the {split} split has {len(rows)} rows: there is no row {index}")
        backend = loaded.backend.make()
        try:
            shown = next(iter(backend.render([rows[index]])))
            lengths = token_lengths(backend, replace(task, splits={split: rows[:_PREVIEWED]}))
        except NotImplementedError as error:
            raise InputError(str(error)) from None
    if as_json:
        print_json({"example": shown.to_dict(), "rows": len(rows), "lengths": lengths})
        return
    print_example(shown, lengths, len(rows))


@ftkit.command()
@click.option(
    "--predictions",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help=".jsonl, .json, .csv or .parquet file.",
)
@click.option("--evaluator", required=True, help="Evaluator plugin, such as those in `ftkit plugins`.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the evaluator.")
@click.option("--target", help="Column of the reference (default: looked for by its usual names).")
@click.option("--prediction", help="Column of the prediction.")
@click.option("--input", "input_", help="Column of the input text, by which a report matches examples.")
@click.option("--id", "id_", help="Column of the example id.")
@click.option("--name", help="What the report calls this system (default: the file's name).")
@_out
@_json
def score(
    path: Path, evaluator: str, options: tuple[str, ...], target: str | None, prediction: str | None, input_: str | None,
    id_: str | None, name: str | None, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Compute metrics for predictions that were made anywhere."""
    from .notebook import Run
    from .recipe import make_plugin
    from .scoring import score_file

    chosen = make_plugin("evaluator", evaluator, options)
    columns = {"target": target, "prediction": prediction, "input": input_, "id": id_}
    scored = Run(score_file(path, [chosen], out, name, columns))
    metrics = scored.metrics["predictions"]
    if as_json:
        print_json({"run": str(scored.dir), "metrics": {n: m.to_dict() for n, m in metrics.items()}})
        return
    print_metrics(metrics.values())
    click.echo(f"run: {scored.dir}", err=True)


@ftkit.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the report (default: the run's own, or runs/report-TIME)."
)
@click.option("--anyway", is_flag=True, help="Compare runs that were not measured alike; the report is marked.")
@click.option(
    "--set-price",
    "prices",
    multiple=True,
    metavar="SYSTEM.KEY=DOLLARS",
    help="A price to reckon with: usd_per_hour of a machine, usd_per_1k predictions, train_usd.",
)
@_json
def report(runs: tuple[str, ...], out: Path | None, anyway: bool, prices: tuple[str, ...], as_json: bool) -> None:
    """Write one report (html, md, json) for any runs that may be compared."""
    from .report import write_report
    from .store import RunContext, read_json

    contexts = [RunContext.open(r) for r in runs]
    folder = out or (
        contexts[0].dir if len(contexts) == 1 else contexts[0].dir.parent / f"report-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    write_report(contexts, folder, anyway, prices)
    if as_json:
        print_json({"report": str(folder), **read_json(folder / "report.json")})
    else:
        print_report(folder)


@ftkit.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@_out
@_json
def runs(folder: Path | None, out: Path, as_json: bool) -> None:
    """List what was run in FOLDER (the same as --out FOLDER), with its headline numbers."""
    from .store import list_runs

    out = folder or out
    rows = [headlines(found) for found in list_runs(out)]
    if as_json:
        print_json({"runs": rows})
        return
    print_runs(rows)
    if not rows:
        click.echo(f"no runs in {out}/", err=True)


@ftkit.command()
@_json
def recipes(as_json: bool) -> None:
    """List the recipes that ship with ftkit; `ftkit run NAME` runs one."""
    from .notebook import shipped_recipes

    shipped: dict[str, Path] = shipped_recipes()
    if as_json:
        print_json({name: str(path) for name, path in shipped.items()})
        return
    for name, path in shipped.items():
        first = next(
            (
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if line.startswith("# ") and "yaml-language" not in line
            ),
            "#",
        )
        click.echo(f"{name:<24} {first[2:].strip()}")


@ftkit.command()
@_json
def plugins(as_json: bool) -> None:
    """List what is installed: name, kind, distribution and version; and what failed to load, and why."""
    from .plugins import installed_plugins

    found = installed_plugins()
    if as_json:
        print_json(plugins_as_dict(found))
        return
    print_plugins(found)


@ftkit.command()
def schema() -> None:
    """Print the JSON Schema of a recipe with every installed plugin's options, for editors."""
    from .plugins import installed_plugins
    from .schema import recipe_schema

    click.echo(json.dumps(recipe_schema(installed_plugins()), indent=2))


if __name__ == "__main__":
    main()

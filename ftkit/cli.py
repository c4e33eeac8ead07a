"""The command line: a thin layer over `ftkit.notebook`. Imports late, so that it answers at once."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from .errors import FtkitError, InputError, Interrupted, Problem, RecipeError


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
            _print_json({"ok": False, "errors": [Problem(error.format_message()).to_dict()]})
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except FtkitError as error:
        if debug:
            import traceback

            traceback.print_exc()
        _show(error, as_json)
        sys.exit(error.exit_status)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"error: {type(error).__name__}: {error}\n  this looks like a defect of ftkit: run again with --debug",
            err=True,
        )
        sys.exit(1)


def _show(error: FtkitError, as_json: bool) -> None:
    from .console import escape

    lead = "" if isinstance(error, Interrupted | RecipeError) else "error: "
    try:
        if as_json:
            _print_json({"ok": False, "errors": [p.to_dict() for p in _problems(error)]})
        click.echo(escape(f"{lead}{error}"), err=True)
    except OSError:  # the terminal was closed, nobody reads: what counts is the exit status
        for fd in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _problems(error: FtkitError) -> list[Problem]:
    return error.problems if isinstance(error, RecipeError) else [Problem(error.message, hint=error.hint)]


def _print_json(data: Any) -> None:
    from .store import dump_json

    click.echo(dump_json(data, indent=2))


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
        _print_json(found if len(found) > 1 else found[0]) if as_json else None
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
        _print_json(data)
    else:
        _print_report(folder)


def _print_report(folder: Path) -> None:
    from .console import escape
    from .records import Report
    from .store import read_json

    report = Report.from_dict(read_json(folder / "report.json"))
    click.echo()
    click.echo(escape(_table(report)))
    click.echo(escape(f"\n{report.verdict}\n{report.verdict_detail}"))
    for note in report.notes:
        click.echo(escape(f"note: {note}"))
    click.echo(f"\nreport: {folder / 'report.html'}")


def _table(report: Any) -> str:
    """Return the systems as plain text: one row each, metrics with half-width intervals."""
    from .console import clock, number

    names = list(dict.fromkeys(n for s in report.systems for n in s.metrics))
    rows = [["system", *names, "n", "seconds"]]
    for s in report.systems:
        cells = [number(s.metrics[n].value, s.metrics[n].unit) if n in s.metrics else "-" for n in names]
        n = max((m.n for m in s.metrics.values()), default=0)
        rows.append([s.name, *cells, str(n), clock(s.seconds)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


@ftkit.command()
@click.argument("recipes", nargs=-1, required=True)
@_set
@_json
@click.pass_obj
def check(debug: bool, recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Say everything that can be known before spending: recipe, data audit, labels, fit, price."""
    found = [_checked(name, overrides, debug) for name in recipes]
    if as_json:
        _print_json(found if len(found) > 1 else found[0])
    sys.exit(0 if all(f["ok"] for f in found) else 2)


def _checked(name: str, overrides: tuple[str, ...], debug: bool) -> dict[str, Any]:
    """Check one recipe; print it for people on stderr and return it for programs."""
    import contextlib
    import tempfile

    from .console import Console, clock, escape
    from .notebook import load

    try:
        recipe = load(name, overrides)
    except InputError as error:
        click.echo(escape(str(error)), err=True)
        return {
            "recipe": name,
            "ok": False,
            "errors": [p.to_dict() for p in _problems(error)],
            "warnings": [],
            "audit": {},
            "estimate": {},
        }
    from .preflight import preflight, problems_of

    console = Console(debug)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        with console.quiet(Path(folder, "log")):
            found = preflight(recipe)
    problems = problems_of(recipe, found.findings)
    for p in problems:
        click.echo(escape(("" if p.level == "error" else f"{p.level}: ") + str(p)), err=True)
    if found.task is not None:
        rows = ", ".join(f"{len(part)} {split}" for split, part in found.task.splits.items())
        click.echo(f"{name}: {rows} rows", err=True)
    estimate = found.estimate
    if "not_estimated" in estimate:
        click.echo(escape(f"not estimated: {estimate['not_estimated']}"), err=True)
    else:
        parts = [f"{estimate['memory_bytes'] / 1e9:.1f} GB"] if estimate.get("memory_bytes") else []
        parts += [clock(estimate["seconds"])] if estimate.get("seconds") else []
        parts += [f"{estimate['usd']:.2f} USD"] if estimate.get("usd") is not None else []
        click.echo(f"estimate (rough): {', '.join(parts)}", err=True)
    if not found.errors:
        click.echo(f"{name}: ok", err=True)
    return {
        "recipe": name,
        "ok": not found.errors,
        "errors": [p.to_dict() for p in problems if p.level == "error"],
        "warnings": [p.to_dict() for p in problems if p.level == "warning"],
        "audit": found.audit,
        "estimate": estimate,
    }


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
            lengths = token_lengths(backend, task)
        except NotImplementedError as error:
            raise InputError(str(error)) from None
    if as_json:
        _print_json({"example": shown.to_dict(), "lengths": lengths})
        return
    _print_tokens(shown)
    learned = sum(shown.learned)
    click.echo(f"\n{len(shown.ids)} tokens: {shown.n_prompt} of the prompt, {learned} learned")
    if any(shown.truncated):
        click.echo(f"cut off: {shown.truncated[0]} prompt tokens, {shown.truncated[1]} target tokens")
    for name, facts in lengths.items():
        if isinstance(facts, dict):
            click.echo(
                f"{name}: median {facts['median']:.0f}, 95 % below {facts['p95']:.0f}, longest {facts['max']} tokens"
            )


def _print_tokens(shown: Any) -> None:
    """Print the tokens with their boundaries: learned ones green on a terminal, in «» elsewhere."""
    from .console import escape

    colour = sys.stdout.isatty()
    for token, learned in zip(shown.tokens, shown.learned, strict=True):
        text = escape(token.replace("Ġ", "·").replace("▁", "·").replace("Ċ", "⏎\n"))
        if colour:
            click.secho(text, fg="green" if learned else None, bold=learned, nl=False)
            click.secho("|", dim=True, nl=False)
        else:
            click.echo(f"«{text}»" if learned else f"{text}|", nl=False)
    click.echo()


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
    from .console import number
    from .notebook import Run
    from .recipe import make_plugin
    from .scoring import score_file

    chosen = make_plugin("evaluator", evaluator, options)
    columns = {"target": target, "prediction": prediction, "input": input_, "id": id_}
    scored = Run(score_file(path, [chosen], out, name, columns))
    metrics = scored.metrics["predictions"]
    if as_json:
        _print_json({"run": str(scored.dir), "metrics": {n: m.to_dict() for n, m in metrics.items()}})
        return
    for m in metrics.values():
        interval = f"  [{number(m.low, m.unit)}, {number(m.high, m.unit)}]" if m.low is not None else ""
        unscored = f", {m.n_unscored} unscored" if m.n_unscored else ""
        click.echo(f"{m.name:<18} {number(m.value, m.unit):>7}{interval}  n={m.n}{unscored}")
    click.echo(f"run: {scored.dir}", err=True)


@ftkit.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the report (default: the run's own, or runs/report-TIME)."
)
@click.option("--anyway", is_flag=True, help="Compare runs that were not measured alike; the report is marked.")
@_json
def report(runs: tuple[str, ...], out: Path | None, anyway: bool, as_json: bool) -> None:
    """Write one report (html, md, json) for any runs that may be compared."""
    from .report import write_report
    from .store import RunContext, read_json

    contexts = [RunContext.open(r) for r in runs]
    folder = out or (
        contexts[0].dir if len(contexts) == 1 else contexts[0].dir.parent / f"report-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    write_report(contexts, folder, anyway)
    if as_json:
        _print_json({"report": str(folder), **read_json(folder / "report.json")})
    else:
        _print_report(folder)


@ftkit.command()
@_out
@_json
def runs(out: Path, as_json: bool) -> None:
    """List what was run, with its headline numbers."""
    from .console import number
    from .store import list_runs, read_json

    rows: list[dict[str, Any]] = []
    for found in list_runs(out):
        record = found.record()
        primary = {}
        for stage in found.measured():
            metrics = read_json(found.path(stage, "metrics.json"))
            name = metrics["settings"].get("primary")
            if name in metrics["metrics"]:
                primary[stage] = {
                    "metric": name,
                    "value": metrics["metrics"][name]["value"],
                    "unit": metrics["metrics"][name]["unit"],
                }
        rows.append(
            {
                "run": str(found.dir),
                "name": record.name,
                "status": record.status,
                "started": record.started,
                "metrics": primary,
            }
        )
    if as_json:
        _print_json({"runs": rows})
        return
    for row in rows:
        headline = ", ".join(
            f"{stage} {p['metric']} {number(p['value'], p['unit'])}" for stage, p in row["metrics"].items()
        )
        click.echo(f"{row['run']}  {row['status']}  {headline}")
    if not rows:
        click.echo(f"no runs in {out}/", err=True)


@ftkit.command()
@_json
def recipes(as_json: bool) -> None:
    """List the recipes that ship with ftkit; `ftkit run NAME` runs one."""
    from .notebook import shipped_recipes

    shipped: dict[str, Path] = shipped_recipes()
    if as_json:
        _print_json({name: str(path) for name, path in shipped.items()})
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
        _print_json(
            {
                "plugins": [
                    {"name": o.name, "kind": o.kind, "summary": o.cls.summary, "distribution": o.owner.distribution,
                     "version": o.owner.version, "module": o.owner.module, "missing": o.missing()}
                    for o in found.all_offers()
                ],
                "failed": [{"entry": o.entry, "module": o.module, "distribution": o.distribution, "version": o.version,
                            "error": o.error} for o in found.failures],
                "duplicates": found.duplicates(),
            }
        )  # fmt: skip
        return
    for o in found.all_offers():
        missing = o.missing()
        needs = f"  (needs {', '.join(missing)}: pip install '{o.cls.requires.install}')" if missing else ""
        click.echo(f"{o.name:<22} {o.kind:<10} {o.owner.distribution} {o.owner.version}  {o.cls.summary}{needs}")
    for owner in found.failures:
        click.echo(
            f"{owner.entry:<22} does not work: {owner.distribution} {owner.version} ({owner.module}) {owner.error}"
        )
    for text in found.duplicates():
        click.echo(f"conflict: {text}; uninstall one of them")


@ftkit.command()
def schema() -> None:
    """Print the JSON Schema of a recipe with every installed plugin's options, for editors."""
    from .plugins import installed_plugins
    from .schema import recipe_schema

    click.echo(json.dumps(recipe_schema(installed_plugins()), indent=2))


if __name__ == "__main__":
    main()

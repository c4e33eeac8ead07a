"""A report over 4 runs of 10,000 predictions each: time, memory, size; then how the page answers in Chromium.

    python benchmarks/report_scale.py [--rows 10000] [--times 5]

The runs are made by `ftkit run` with a rule in place of a model. Each has a baseline and a tuned
measurement; the baseline is the same, so the page shows five systems and compares them in ten pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _scale import measured, middle, ratio, report, setup

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

RUNS = 4


# ---------------------------------------------------------------- the runs


def make(out: Path, n: int) -> None:
    """Write `RUNS` runs of `n` test rows into `out`, each a rule that keeps more of the dialogue."""
    from ftkit_quickstart._dialogues import rows
    from pydantic import Field

    import ftkit
    from ftkit.api import Backend, Options, Session
    from ftkit.console import Console
    from ftkit.directory import RunDirectory
    from ftkit.hookspecs import hookimpl
    from ftkit.plugins import PluginSource, installed_plugins
    from ftkit.records import Example, GenerationConfig, ModelRef, Prediction, Task

    class WordsOptions(Options):
        words: int = Field(9, description="how many words of the target it knows once it was trained")

    class Words(Backend):
        """Answers with the first words of the dialogue, and once it was trained, of the target."""

        name, summary, Options = "first-words", "a rule in place of a model", WordsOptions

        def base_model(self) -> ModelRef:
            return ModelRef("rule", "first-words", meta={"words": 0})

        def identity(self, model: ModelRef, run: RunDirectory) -> dict[str, Any]:
            return model.to_dict()

        def train(self, task: Task, run: RunDirectory) -> ModelRef:
            for step in range(1, 301):
                run.log("step", step=step, loss=3 / step)
            return ModelRef("rule", "first-words", meta={"words": self.options.words})

        @property
        def eval_batch_size(self) -> int:
            return 250  # each batch is synced to the disk, which is not what is measured here

        @contextlib.contextmanager
        def load(self, model: ModelRef, run: RunDirectory) -> Iterator[Session]:
            yield Rule(model.meta["words"])

    class Rule(Session):
        def __init__(self, words: int) -> None:
            self.words = words

        def generate(
            self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
        ) -> Iterator[list[Prediction]]:
            for batch in batches:
                yield [Prediction(e.id, self.answer(e), tokens_in=90, tokens_out=12) for e in batch]

        def answer(self, example: Example) -> str:
            known = example.targets[0].split()[: self.words]
            return " ".join([*known, *example.input.split()[: 12 - self.words]])

    class Plugin:
        @hookimpl
        def ftkit_backends(self) -> list[type[Backend]]:
            return [Words]

    installed_plugins().register(Plugin(), PluginSource("benchmark", "benchmark", "benchmark", "1"))
    data = out / "data"
    data.mkdir(parents=True)
    for split, count in (("train", 10), ("validation", 10), ("test", n)):
        lines = (json.dumps(row) + "\n" for row in rows(split, count, seed=5))
        (data / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    for k in range(RUNS):
        recipe = {
            "name": f"rule-{k}",
            "dataset": {"path": str(data), "columns": {"input": "dialogue", "target": "summary"}},
            "backend": {"plugin": "first-words", "words": 2 + 2 * k},
            "evaluator": "rouge",
        }
        ftkit.run(recipe, out=out / "runs", console=Console(silent=True))


def write(out: Path) -> None:
    from ftkit.directory import list_runs
    from ftkit.report import write_report

    runs = list_runs(out / "runs")
    page = out / "report" / "report.html"

    def work() -> dict[str, Any]:
        found = write_report(runs, page.parent)
        return {"page_mb": page.stat().st_size / 1e6, "systems": len(found.systems), "deltas": len(found.deltas)}

    report(work)


# ---------------------------------------------------------------- the page

LOADED = """
  const [navigation] = performance.getEntriesByType('navigation');
  return navigation.domContentLoadedEventEnd - navigation.startTime"""

# From the key going down to the frame that shows the rows it leaves.
LISTEN = """
  window.took = [];
  document.getElementById('search').addEventListener('keydown', (event) => requestAnimationFrame(
    () => setTimeout(() => window.took.push(performance.now() - event.timeStamp))));"""

SCROLL = """
  const [done] = arguments, frames = [];
  let last = performance.now();
  const frame = (now) => {
    frames.push(now - last);
    last = now;
    scrollBy(0, 40);
    if (frames.length < 150) requestAnimationFrame(frame); else done(frames.slice(1));
  };
  requestAnimationFrame(frame);"""


def browse(page: Path) -> dict[str, Any]:
    """Return how the page answers in Chromium, in milliseconds."""
    import chromium

    with tempfile.TemporaryDirectory() as profile:
        browser = chromium.start(Path(profile))
        try:
            chromium.show(browser, page.as_uri())
            opened = float(browser.execute_script(LOADED))
            browser.execute_script(LISTEN)
            search = browser.find_element("id", "search")
            for letter in "saturday at":
                search.send_keys(letter)
                time.sleep(0.05)
            found = browser.find_element("id", "count").text
            keys = [float(ms) for ms in browser.execute_script("return window.took")]
            frames = [float(ms) for ms in browser.execute_async_script(SCROLL)]
            nodes = int(browser.execute_script("return document.querySelectorAll('*').length"))
        finally:
            browser.quit()
    return {
        "open": opened,
        "keys": statistics.median(keys),
        "slowest_key": max(keys),
        "frame": statistics.median(frames),
        "slow_frame": sorted(frames)[int(0.95 * len(frames))],
        "found": found,
        "nodes": nodes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        report(lambda: make(options.make, options.rows))
        return
    if options.write:
        write(options.write)
        return

    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder, "few"), Path(folder, "many")
        for place, n in ((few, options.rows // 10), (many, options.rows)):
            made = measured(__file__, "--make", place, "--rows", n)
            print(f"made {RUNS} runs of {n:,} rows in {made['seconds']:.0f} s", file=sys.stderr)
        runs: dict[Path, list[dict[str, Any]]] = {few: [], many: []}
        for _ in range(options.times):
            for place, found in runs.items():
                found.append(measured(__file__, "--write", place))
        print(setup("ftkit", "numpy"))
        print(f"median of {options.times}, taking turns\n")
        print("| a report over | systems | differences | seconds | of them CPU | peak memory | report.html |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        for place, n in ((few, options.rows // 10), (many, options.rows)):
            found = runs[place]
            print(
                f"| {RUNS} runs of {n:,} predictions | {found[0]['systems']} | {found[0]['deltas']} "
                f"| {middle(found, 'seconds'):.2f} | {middle(found, 'cpu'):.2f} | {middle(found, 'peak_mb'):.0f} MB | {found[0]['page_mb']:.1f} MB |"
            )
        growth = [ratio(runs[many], runs[few], key) for key in ("seconds", "cpu")]
        print(f"\nten times the rows: {growth[0]:.1f} times the time (CPU: {growth[1]:.1f}; at most 10.5)")
        if not (shutil.which("chromium") and shutil.which("chromedriver")):
            print("\nthe page was not opened: chromium and chromedriver are not on this machine")
            return
        seen = browse(many / "report" / "report.html")
        print(f"\nin Chromium: opens in {seen['open']:.0f} ms; {seen['nodes']:,} elements; found {seen['found']}")
        print(f"from a key to the rows it leaves: {seen['keys']:.0f} ms (slowest {seen['slowest_key']:.0f} ms)")
        print(f"a frame while scrolling: {seen['frame']:.1f} ms (95 % within {seen['slow_frame']:.1f} ms)")


if __name__ == "__main__":
    main()

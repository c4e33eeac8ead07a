"""What the Python interface returns: checks, previews, lists of runs, frames, pictures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import ftkit
from ftkit.console import Console
from ftkit.records import Curve
from ftkit.report.plot import draw

QUIET = Console(silent=True)
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def result(fakes: Any, recipe: Make, tmp_path: Path) -> Any:
    return ftkit.run(recipe(backend={"extras": True, "fail": ["test-1"]}), out=tmp_path / "runs", console=QUIET)


def test_check(fakes: Any, recipe: Make) -> None:
    good = ftkit.check(recipe(backend={"warn": "the model is old"}))
    assert good.ok and not good.errors and [p.message for p in good.warnings] == ["the model is old"]
    assert good.audit["splits"]["test"]["rows"] == 24 and good.estimate["seconds"] == 1.5
    assert str(good).splitlines()[-4:] == [*good.summary, "ok"] and "warning: the model is old" in repr(good)
    bad = ftkit.check(recipe(backend={"skil": 1}), overrides=["seed=-1"])
    assert not bad.ok and len(bad.errors) == 2 and "did you mean `skill`" in str(bad) and str(bad).endswith("2 errors")
    refused = ftkit.check(recipe(backend={"refuse": "no access"}))
    assert [p.message for p in refused.errors] == ["no access"]
    with pytest.raises(ftkit.FtkitError, match="there is no file nowhere"):
        ftkit.check("nowhere")


def test_preview(fakes: Any, recipe: Make) -> None:
    shown = ftkit.preview(recipe(), index=2)
    assert shown.example.tokens[-1] == "<end>" and shown.rows == 20 and shown.lengths["train"]["rendered"] == 20
    assert "«<end>»" in str(shown) and str(shown).count("\n") == 3
    page = shown._repr_html_()
    assert "<mark>&lt;end&gt;</mark>" in page and "<end>" not in page
    with pytest.raises(ftkit.FtkitError, match="there is no row 99"):
        ftkit.preview(recipe(), "test", 99)
    with pytest.raises(ftkit.FtkitError, match="does not show tokens"):
        ftkit.preview(recipe(backend={"plugin": "fake-echo"}))
    with pytest.raises(ftkit.FtkitError, match="did you mean `skill`"):
        ftkit.preview(recipe(backend={"skil": 1}))


def test_predictions_as_a_frame(result: Any) -> None:
    frame = result.predictions()
    assert set(frame.system) == {"baseline", "tuned", "tuned-train-rows"}
    tuned = frame[frame.system == "tuned"].set_index("example_id")
    assert len(tuned) == 24 and tuned.loc["test-1", "error"] and tuned.overlap.isna().sum() == 1
    assert tuned.overlap.mean() == pytest.approx(result.metrics["tuned"]["overlap"].value)
    assert tuned.loc["test-0", "input"].startswith("test row 0") and tuned.loc["test-0", "target"].isupper()
    assert frame[frame.system == "tuned-train-rows"].input.str.startswith("train row").all()


def test_metrics_and_curves_as_frames(result: Any) -> None:
    frame = result.metrics_frame()
    tuned = frame[(frame.system == "tuned") & frame.primary].iloc[0]
    assert tuned.metric == "overlap" and tuned.value == result.metrics["tuned"]["overlap"].value and tuned.n == 23
    assert tuned.low <= tuned.value <= tuned.high and tuned.unit == "fraction"
    curves = result.curves()
    loss = curves[curves.name == "loss"] if False else curves[curves["name"] == "loss"]
    assert list(loss.step) == [1, 2, 3, 4, 5, 6] and loss.value.iloc[1] == 0.5
    assert set(curves.axis) == {"loss", "validation metrics"} and set(curves.run) == {result.dir.name}


def test_several_runs(fakes: Any, recipe: Make, tmp_path: Path) -> None:
    both = ftkit.run(recipe(name="a"), recipe(name="b"), out=tmp_path, console=QUIET)
    assert both.metrics_frame().run.nunique() == 2 and both.curves().run.nunique() == 2
    assert len(both.predictions()) == 4 * 24
    assert both.plot().svg.count("<polyline") == 2


def test_an_unfinished_run(fakes: Any, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKES", "train=crash")
    with pytest.raises(ftkit.FtkitError):
        ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET)
    (run,) = ftkit.runs(tmp_path / "runs")
    assert run.status == "failed" and set(run.predictions().system) == {"baseline"}
    assert len(run.curves()) == 2 and "<polyline" in run.plot().svg


def test_lists_of_runs(fakes: Any, recipe: Make, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert len(ftkit.runs(out)) == 0 and "<table>" in ftkit.runs(out)._repr_html_() and ftkit.runs(out).frame().empty
    for name, skill in (("<b>weak", 0.1), ("strong", 0.9)):
        ftkit.run(recipe(name=name.replace("<b>", ""), backend={"skill": skill}), out=out, console=QUIET)
    found = ftkit.runs(out, sort="tuned")
    assert [run.directory.record().name for run in found] == ["strong", "weak"]
    assert found[0].metrics["tuned"]["overlap"].value > found[1].metrics["tuned"]["overlap"].value
    frame = found.frame()
    assert list(frame["name"]) == ["strong", "weak"] and (frame.change == frame.tuned - frame.base).all()
    assert len(found[:1]) == 1 and "strong done" in repr(found) and "<td>strong</td>" in found._repr_html_()
    assert [r.directory.record().name for r in ftkit.runs(out, where=["backend.skill=0.1"])] == ["weak"]
    for wrong in ({"sort": "size"}, {"where": ["backend.skil=1"]}):
        with pytest.raises(ftkit.FtkitError):
            ftkit.runs(out, **wrong)


# ---------------------------------------------------------------- pictures


def test_a_picture_is_well_formed_and_inert(tmp_path: Path) -> None:
    evil = '</text><script>alert("x")</script>&'
    curves = [
        Curve(evil, evil, evil, ([0, 1.0], [5, 2.0], [10, float("nan")], [11, float("inf")])),
        Curve("a", "one point", "loss", ([3, 0.5],)),
        Curve("a", "constant", "loss", ([1, 0.5], [2, 0.5])),
        Curve("a", "empty", "nothing", ()),
    ]
    drawing = draw(curves)
    root = ElementTree.fromstring(drawing._repr_svg_())
    tags = [element.tag.partition("}")[2] for element in root.iter()]
    assert "script" not in tags and tags.count("polyline") == 2 and tags.count("circle") == 1 and tags.count("g") == 2
    assert "nan" not in drawing.svg and "inf" not in drawing.svg
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 640 and 0 <= y <= 220
    drawing.save(tmp_path / "curves.svg")
    assert ElementTree.parse(tmp_path / "curves.svg").getroot().attrib["role"] == "img"
    assert "no training curves yet" in draw([]).svg


# ---------------------------------------------------------------- imports


def test_frames_without_pandas_say_so(result: Any, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['pandas'] = None\nimport ftkit\n"
        f"run = ftkit.open_run({str(result.dir)!r})\n"
        "print(run.plot().svg[:4])\n"
        "try: run.metrics_frame()\nexcept ftkit.FtkitError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "<svg",
        "this returns a pandas frame, and pandas is not installed",
        "  pip install pandas",
    ]


def test_pandas_is_imported_late() -> None:
    program = (
        "import sys, ftkit\nftkit.run, ftkit.runs, ftkit.check, ftkit.preview, ftkit.RunResult, ftkit.RunList\n"
        "print([m for m in ('pandas', 'torch', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

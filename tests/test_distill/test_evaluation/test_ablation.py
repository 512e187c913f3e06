import json
import re

import pytest
from PIL import Image

from distill.__main__ import main
from distill.cli.commands.ablate import print_summary
from distill.cli.config import compose, options
from distill.evaluation.ablation import markdown, summary


def report(student: float, swap: float = 10.0, teacher: float = 50.0, auroc: float | None = 0.75) -> dict:
    def row(name, value):
        image = {"0.10": value, "0.05": value / 2}
        dagger = {"swap": swap if name == "student" else 4 * swap}
        found = {"matcher": name, "pck": {"image": image}, "pck_dagger": dagger, "confidence": {"auroc@0.10": auroc}}
        return found | {"interval@0.10": [value - 3, value + 2]}

    return {"matchers": [row("teacher", teacher), row("student", student)]}


def test_rows_are_means_spreads_and_gains_over_the_first():
    rows = summary({"plain": [report(60), report(64)], "better": [report(70, swap=5), report(66, swap=7)]})
    assert rows[0]["pck@0.10"] == 62 and rows[0]["spread@0.10"] == pytest.approx(8**0.5) and rows[0]["gain@0.10"] == 0
    assert rows[1]["gain@0.10"] == 6 and rows[1]["pck@0.05"] == 34 and rows[1]["swap@0.10"] == 6
    assert (
        "| better | 2 | 68.0 | 65.0 | 70.0 | 2.8 | 34.0 | 1.4 | 6.0 | +6.0 | 50.0 | 47.0 | 52.0 | 25.0 | 24.0 | 75.0 |"
        in markdown(rows)
    )


def test_a_teacher_that_is_never_wrong_has_no_area_under_a_curve():
    (row,) = summary({"plain": [report(60, auroc=0.5), report(60, auroc=None)]})
    assert row["teacher_auroc@0.10"] is None and row["teacher_swap@0.10"] == 40


def test_one_seed_has_no_spread():
    assert "| plain | 1 | 60.0 | 57.0 | 62.0 | - |" in markdown(summary({"plain": [report(60)]}))


@pytest.mark.parametrize("suite", [name for name in options("suite") if name != "consensus"])
def test_the_variants_of_every_suite_are_fits(suite):
    config = compose("ablate", [f"suite={suite}"])
    root = [] if suite == "shapes" else ["data.root=x", "student.weights=y"]
    assert next(iter(config.suite.variants.values())) == []  # what the others are held against
    for changes in config.suite.variants.values():
        text = [str(change).replace("${run.dir}", "somewhere") for change in changes]
        assert compose("fit", [*config.suite.base, *root, *text])


def test_bad_seeds_are_refused_before_anything_is_trained(tmp_path, capsys):
    assert main(["ablate", "seeds=[0,0]", f"run.dir={tmp_path}/a"]) == 2
    assert "seeds, each once" in capsys.readouterr().err and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("+suite.variants.two='[lr=0.1]'", r"two but got '\[lr=0.1\]'"),
        ("base=[1]", r"base but got \[1\]"),
        ("+suite.variants.base='x'", "base but got 'x'"),
    ],
)
def test_variants_are_lists_of_settings(override, found, tmp_path, capsys):
    assert main(["ablate", override, f"run.dir={tmp_path}/a"]) == 2
    error = capsys.readouterr().err
    assert re.search(f"a list of settings of fit for {found}.*each quoted", error) and not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ['".."', '"../up"', '"a/b"', "labels", "no", "1", '""'])
def test_a_variants_name_is_that_of_a_folder_of_its_own(name, tmp_path, capsys):
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "mine.yaml").write_text(f"base: []\nvariants:\n  {name}: []\n")
    arguments = ["ablate", "suite=mine", f"run.dir={tmp_path}/runs/a", "--config-dir", str(tmp_path)]
    assert main(arguments) == 2
    assert "Expected variants of suite named by at most 60 letters" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_variant_whose_settings_do_not_go_together_is_named(tmp_path, capsys):
    """self_distillation is a section there, which the base sets to null: the error told of neither."""
    arguments = ["ablate", "base=['self_distillation=null']", "seeds=[0]", f"run.dir={tmp_path}/a"]
    assert main(arguments) == 2
    assert "settings of fit for self_labels_at_one that go together" in capsys.readouterr().err


def test_a_suite_of_a_matcher_needs_values(tmp_path, capsys):
    assert main(["ablate", "suite=consensus", "suite.matcher=null", f"run.dir={tmp_path}/a"]) == 2
    assert "suite.matcher" in capsys.readouterr().err and not (tmp_path / "a").exists()


@pytest.mark.parametrize("annotated", [True, False])
def test_fits_that_are_not_compared_with_their_teacher_are_refused_before_the_first(
    annotated, tmp_path, capsys, monkeypatch
):
    """A traceback about metrics.json, or about a row "teacher", came after the first training."""
    monkeypatch.setattr("distill.cli.commands.fit.run", lambda cfg: pytest.fail("trained"))
    base, found = "['test.n_pairs=0']", "test.n_pairs=0"
    if not annotated:
        for number in range(24):
            (tmp_path / "photos/cat").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"photos/cat/{number}.png")
        base, found = f"['data=folder','data.root={tmp_path}/photos','data.size=32','test.n_pairs=4']", "none"
    assert main(["ablate", "seeds=[0]", f"run.dir={tmp_path}/a", f"base={base}"]) == 2
    error = capsys.readouterr().err
    assert (
        f"Expected test pairs with annotated points, on which ablate compares students and teachers, but got {found};"
        in error
    )
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_finished_fits_are_not_made_again(tmp_path):
    mine = tmp_path / "suite"
    mine.mkdir()
    small = [
        "teacher=oracle",
        "trainer=smoke",
        "student.backbone=test_resnet",
        "student.strides=[8,16]",
        "data.size=64",
    ]
    small += [
        "student.width=8",
        "train.n_pairs=8",
        "val.n_pairs=4",
        "test.n_pairs=4",
        "device=cpu",
        "onnx=false",
        "pictures=0",
    ]
    base = json.dumps([*small, "trainer.accelerator=cpu"])
    (mine / "two.yaml").write_text(f"base: {base}\nvariants:\n  a: []\n  b: [ema=0.5]\n")
    arguments = ["ablate", "suite=two", "seeds=[0]", f"run.dir={tmp_path}/run", "--config-dir", str(tmp_path)]
    assert main(arguments) == 0
    table = (tmp_path / "run" / "ablation.md").read_text()
    written = (tmp_path / "run" / "a" / "0" / "student.safetensors").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "run" / "ablation.md").read_text() == table
    assert (tmp_path / "run" / "a" / "0" / "student.safetensors").stat().st_mtime_ns == written


def test_the_table_in_the_terminal_fits_it(capsys, monkeypatch):
    """It was Markdown of 118 columns."""
    rows = summary({"plain": [report(60), report(64)], "neighbourhood_consensus": [report(70, swap=5), report(66)]})
    for width in (60, 80, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        print_summary(rows)
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= width
        assert all(value in shown for value in ("neighbourhood_consensus", "68.0", "2.8", "34.0", "+6.0", "50.0"))

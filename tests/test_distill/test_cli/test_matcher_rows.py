"""Tables of a matcher's settings, which ``ablate`` makes without training."""

import json

import pytest
from omegaconf import OmegaConf

from distill.__main__ import main
from distill.cli.config import compose
from distill.cli.matcher_rows import combinations, report_of
from distill.core.errors import ConfigError
from distill.evaluation.settings_table import cells, columns, markdown, summary


def test_every_combination_comes_once_and_reach_without_strength_does_not():
    values = {"consensus": [0.0, 5.0], "layers": [["a"], ["b", "c"]], "sigma": [0.1, 0.2]}
    rows = list(combinations(values, {"sigma": "consensus"}, ["consensus", "sigma"]))
    assert rows == [
        {"layers": ["a"], "consensus": 0.0, "sigma": None},
        {"layers": ["a"], "consensus": 5.0, "sigma": 0.1},
        {"layers": ["a"], "consensus": 5.0, "sigma": 0.2},
        {"layers": ["b", "c"], "consensus": 0.0, "sigma": None},
        {"layers": ["b", "c"], "consensus": 5.0, "sigma": 0.1},
        {"layers": ["b", "c"], "consensus": 5.0, "sigma": 0.2},
    ]


@pytest.mark.parametrize("values", [{}, {"timestep": []}, {"timestep": 50}])
def test_settings_without_a_list_of_values_are_refused(values):
    with pytest.raises(ConfigError, match="a list of values for each setting in suite.matcher"):
        list(combinations(values, {}, []))


def test_the_table_names_settings_and_figures():
    report = {
        "pck": {"image": {"0.05": 12.34, "0.10": 45.67}},
        "interval@0.10": [40.0, 100.0],
        "pck_dagger": {"swap": 7.0},
    }
    rows = summary([{"layers": ["up@1/4", "up@1/2:0"], "consensus_sigma": None}], [report])
    assert columns(rows)[:2] == ["layers", "consensus_sigma"]
    assert cells(rows) == [["up@1/4, up@1/2:0", "-", "12.3", "45.7", "40.0", "100.0", "7.0"]]
    assert "| up@1/4, up@1/2:0 | - | 12.3 | 45.7 | 40.0 | 100.0 | 7.0 |" in markdown(rows)


def test_the_rows_of_the_suite_are_evaluations_with_the_settings_of_the_recipes():
    suite = compose("ablate", ["suite=consensus"]).suite
    recipe = compose("fit", ["experiment=spair71k_sd15", "data.root=x"]).teacher
    base = compose("evaluate", list(suite.base)).matcher
    assert (base.queries, base.embeddings) == (recipe.queries, recipe.embeddings)
    assert recipe.timestep in suite.matcher.timestep and list(recipe.layers) in [list(v) for v in suite.matcher.layers]
    assert recipe.consensus in suite.matcher.consensus


def test_prompts_are_optimised_once_and_every_row_is_what_evaluate_says(sd1_folder, tmp_path, capsys, monkeypatch):
    """On a random model of Stable Diffusion 1's layout; the single evaluation shares nothing with the table."""
    from teacher.source_image import SourceImages

    optimised, optimise = [], SourceImages.optimise

    def counted(self, images, points, names):
        optimised.append(len(names))
        return optimise(self, images, points, names)

    monkeypatch.setattr(SourceImages, "optimise", counted)
    small = [f"matcher.model={sd1_folder}", "matcher.steps=1", "matcher.crops=1", "matcher.noise_draws=1"]
    small += [
        "matcher.embeddings=1",
        "matcher.null_prompt=zeros",
        "matcher.prompt_length=7",
        "data.n_pairs=1",
        "data.size=64",
        "device=cpu",
    ]
    table = ["ablate", "suite=consensus", f"run.dir={tmp_path}/table", f"base={json.dumps(small)}"]
    table += [
        "suite.matcher.layers=[[up@1/4],['up@1/2:0']]",
        "suite.matcher.consensus_sigma=[0.2]",
        "suite.matcher.consensus=[0.0,5.0]",
    ]
    assert main(table) == 0
    rows = json.loads((tmp_path / "table" / "ablation.json").read_text())["rows"]
    assert [row["settings"]["consensus"] for row in rows] == [0.0, 5.0] * 2
    in_table = sum(optimised)
    last = ["evaluate", *small, "matcher=prompt_optimization", "matcher.queries=conditioned", "data.split=val"]
    last += ["matcher.layers=['up@1/2:0']", "matcher.timestep=140", "matcher.consensus=5.0"]
    assert main([*last, "matcher.consensus_sigma=0.2", f"run.dir={tmp_path}/alone"]) == 0
    alone = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    assert in_table == 2 * (sum(optimised) - in_table)  # once for each choice of layers
    kept = json.loads((tmp_path / "table" / "04" / "metrics.json").read_text())
    assert kept["pck"] == alone["pck"] and rows[-1]["PCK@0.10"] == alone["pck"]["image"]["0.10"]
    written = (tmp_path / "table" / "04" / "metrics.json").stat().st_mtime_ns
    assert main(table) == 0  # a second time from what is there
    assert (tmp_path / "table" / "04" / "metrics.json").stat().st_mtime_ns == written
    assert "PCK" in capsys.readouterr().out
    assert main([*table, "suite.matcher.timestep=[50]"]) == 2
    assert "choose another run.dir" in capsys.readouterr().err


def test_a_finished_evaluation_may_be_moved_but_not_changed(tmp_path):
    made = compose("evaluate", ["matcher=box_relative", f"run.dir={tmp_path}/made"])
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.yaml").write_text(OmegaConf.to_yaml(made, resolve=True))
    (moved / "metrics.json").write_text('{"pck": 1}')
    assert report_of(compose("evaluate", ["matcher=box_relative", f"run.dir={moved}"]), {}) == {"pck": 1}
    with pytest.raises(ConfigError, match=r"but they differ: data.seed=7 \(0 before\); choose another run.dir"):
        report_of(compose("evaluate", ["matcher=box_relative", "data.seed=7", f"run.dir={moved}"]), {})


def test_a_folder_of_another_run_is_neither_replaced_nor_added_to(tmp_path):
    other = tmp_path / "01"
    other.mkdir()
    (other / "config.yaml").write_text(OmegaConf.to_yaml(compose("fit", [f"run.dir={other}"]), resolve=True))
    (other / "student.safetensors").write_bytes(b"mine")
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    with pytest.raises(ConfigError, match="to have the settings of this table but they differ"):
        report_of(compose("evaluate", ["matcher=box_relative", f"run.dir={other}"]), {})
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_seeds_and_unknown_settings_are_refused_before_anything_is_measured(tmp_path, capsys):
    assert main(["ablate", "suite=consensus", "seeds=[1]", f"run.dir={tmp_path}/a"]) == 2
    assert "this suite trains nothing" in capsys.readouterr().err
    assert main(["ablate", "suite=consensus", "base=['matcher.layerz=[a]']", f"run.dir={tmp_path}/a"]) == 2
    assert "matcher.layers" in capsys.readouterr().err and not (tmp_path / "a").exists()

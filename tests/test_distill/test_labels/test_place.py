"""Labels of several teachers in one place."""

import pytest
from omegaconf import OmegaConf

from distill.cli.rows import labelled
from distill.core.errors import ConfigError
from distill.labels.cached import Cached
from distill.labels.place import place_for
from distill.matchers.oracle import Oracle


class Other(Oracle):
    """Another teacher with the same answers."""

    def fingerprint(self) -> dict[str, str]:
        return {"method": "other"}


def test_a_second_teacher_gets_a_folder_of_its_own_beside_the_first(few, tmp_path):
    first, second = Oracle(), Other()
    folder = tmp_path / "labels"
    assert place_for(folder, second.fingerprint()) == folder, "nothing is there"
    for teacher in (first, second):
        cached = Cached(place_for(folder, teacher.fingerprint()), teacher)
        cached.match_pairs(few[0])
        cached.flush()
    beside = place_for(folder, second.fingerprint())
    assert beside.parent == tmp_path and beside.name.startswith("labels-") and len(beside.name) == len("labels-") + 8
    assert place_for(folder, first.fingerprint()) == folder
    assert place_for(folder, {"method": "third"}) not in (folder, beside)
    assert len(Cached(beside, second).store) == len(Cached(folder, first).store) == 3


def test_compare_takes_a_second_teacher(few, tmp_path, capsys):
    cfg = OmegaConf.create({"labels": {"dir": f"{tmp_path}/labels", "fallbacks": []}, "data": {"size": 32}})
    for teacher in (Oracle(), Other()):
        cached = labelled(teacher, cfg)
        cached.match_pairs(few[0])
        cached.flush()
    assert f"note: {tmp_path}/labels holds labels of another teacher" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="a teacher with a fingerprint"):
        labelled(object(), cfg)  # type: ignore[arg-type]


def test_a_damaged_folder_is_left_to_whoever_reads_it(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / f"{'0' * 32}.safetensors").write_bytes(b"no labels")
    assert place_for(tmp_path / "labels", {"method": "other"}) == tmp_path / "labels"

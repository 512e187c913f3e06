"""One store of labels serves students of several sizes."""

from distill.__main__ import main
from distill.labels.store import LabelStore

SMALL = [
    *("trainer=smoke", "trainer.max_epochs=1", "device=cpu", "trainer.accelerator=cpu", "teacher=oracle"),
    *("student.backbone=test_resnet", "student.strides=[8,16]", "student.width=16", "self_distillation=null"),
    *("train.n_pairs=8", "val.n_pairs=4", "test.n_pairs=4", "onnx=false", "pictures=0"),
]


def test_students_of_two_sizes_are_trained_from_one_store(tmp_path):
    store = tmp_path / "labels"
    sizes = {}
    for size in (48, 64):
        arguments = ["fit", *SMALL, f"data.size={size}", f"labels.dir={store}", f"run.dir={tmp_path}/{size}"]
        assert main(arguments) == 0
        sizes[size] = sorted(path.name for path in store.glob("[!.]*.safetensors"))
    assert sizes[48] == sizes[64], "the second training added labels"
    assert len(LabelStore(store)) > 16


def test_labels_of_a_teacher_that_looks_at_another_size_are_refused(tmp_path, capsys):
    data = ["train.n_pairs=2", "val.n_pairs=0", "test.n_pairs=0", "device=cpu", f"labels.dir={tmp_path}/l"]
    teacher = ["teacher=nearest_neighbour", "teacher.model.backbone=test_resnet", "labels.fallbacks=[]"]
    assert main(["label", *data, *teacher, "data.size=32"]) == 0
    assert main(["label", *data, *teacher, "data.size=48"]) == 2
    assert "size (32 in the store, 48 asked for)" in capsys.readouterr().err
    assert main(["label", *data, *teacher, "data.size=48", "teacher.size=32"]) == 0
    assert "0 points labelled" in capsys.readouterr().out

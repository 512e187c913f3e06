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

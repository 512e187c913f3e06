"""A label store from a stranger: its metadata are data."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from distill.core.errors import LabelError
from distill.labels.folder import LabelFolder
from distill.labels.shard import FORMAT

HOSTILE = {"_target_": "pathlib.Path.touch", "_args_": ["{marker}"]}
METADATA = {
    "no JSON": "{",
    "a list": "[]",
    "deep nesting": "[" * 20_000,
    "no fingerprint": json.dumps({"format": FORMAT}),
    "a fingerprint that is a number": json.dumps({"format": FORMAT, "fingerprint": 1, "images": 2}),
    "targets": json.dumps({"format": FORMAT, "fingerprint": HOSTILE, "images": [HOSTILE]}),
}


@pytest.mark.parametrize("text", METADATA.values(), ids=METADATA)
def test_metadata_that_are_none_are_refused_in_one_line(tmp_path, text):
    marker = tmp_path / "marker"
    content = save({"checksum": np.zeros(1, np.uint32)}, {"distill": text.replace("{marker}", str(marker))})
    store = tmp_path / "store"
    store.mkdir()
    (store / ("a" * 32 + ".safetensors")).write_bytes(content)
    with pytest.raises(LabelError) as caught:
        len(LabelFolder(store).index)
    assert "\n" not in str(caught.value) and not marker.exists()

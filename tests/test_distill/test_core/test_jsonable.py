import json

import numpy as np

from distill.core.jsonable import jsonable


def test_what_json_does_not_have_becomes_null():
    content = {
        "a": float("nan"),
        "b": [1.5, float("inf"), (2, -float("inf"))],
        "c": {"d": np.float64("nan")},
        "e": "nan",
    }
    assert json.dumps(jsonable(content), allow_nan=False) == (
        '{"a": null, "b": [1.5, null, [2, null]], "c": {"d": null}, "e": "nan"}'
    )

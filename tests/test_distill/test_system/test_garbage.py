import gc

import pytest

from distill.system.garbage import without_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_paused_and_goes_on_as_before_after_errors_too(enabled):
    try:
        gc.enable() if enabled else gc.disable()
        with pytest.raises(KeyError), without_collection():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()

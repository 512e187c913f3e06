import pytest
import torch
from torch.nn import functional as F

from distill.core.errors import ConfigError
from student import NearestNeighbour, StudentMatcher
from student.fusion import Fusion


def test_each_upsampling_doubles_the_map():
    maps = [torch.rand(1, 4, 8, 8), torch.rand(1, 6, 4, 4)]
    assert Fusion([4, 6], 5, upsample=2)(maps).shape == (1, 5, 32, 32)
    with pytest.raises(ConfigError, match="upsample of at least 0"):
        Fusion([4], 5, upsample=-1)


def test_with_a_backbone_skip_and_a_head_of_gain_zero_the_student_is_the_nearest_neighbour():
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [8, 16], 6, backbone_skip=True).eval()
    assert student.fusion.backbone_skip is not None
    torch.nn.init.zeros_(student.fusion.backbone_skip.gain)
    baseline = NearestNeighbour("test_resnet", [8, 16])
    baseline.backbone.load_state_dict(student.backbone.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = student.describe(images)
        expected = baseline.describe(images)
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, atol=1e-5, rtol=0)
    assert not found[:, expected.shape[1] :].any()


def test_similarities_of_features_and_head_add_up():
    torch.manual_seed(0)
    fusion = Fusion([4, 6], 5, backbone_skip=True).eval()
    maps = [torch.randn(1, 4, 4, 4), torch.randn(1, 6, 2, 2)]
    with torch.no_grad():
        joined = fusion(maps)[0].flatten(1)
        assert fusion.backbone_skip is not None
        fusion.backbone_skip.gain.zero_()
        features = fusion(maps)[0, :10].flatten(1)
        fusion.backbone_skip = None
        head = F.normalize(fusion(maps)[0].flatten(1), dim=0)
    torch.testing.assert_close(joined.T @ joined, features.T @ features + 0.09 * head.T @ head, atol=1e-5, rtol=0)

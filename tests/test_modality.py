import pytest

from relabel.modality import IMAGES, VECTORS, Modality, of_backbone, of_features, of_values


@pytest.mark.parametrize("modality", [IMAGES, VECTORS])
def test_a_modality_is_told_by_its_backbones(modality: Modality) -> None:
    assert of_backbone(modality.default_backbone("none")) is modality
    assert of_backbone(modality.default_backbone("imagenet")) is modality


def test_a_modality_is_told_by_what_is_asked_and_by_what_is_there() -> None:
    assert (of_features(None), of_features("f_*")) == (IMAGES, VECTORS)
    assert (of_values(4), of_values(2)) == (IMAGES, VECTORS)


def test_the_size_in_words() -> None:
    assert (IMAGES.extent(32), VECTORS.extent(300)) == ("32 px", "300 dimensions")

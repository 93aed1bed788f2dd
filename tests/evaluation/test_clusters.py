import pytest
import torch

from hf_latentgen import AAEConfig, AAEForImageClassification, LevelsDataset, LevelsImageProcessor
from hf_latentgen.data import load_images
from hf_latentgen.evaluation.clusters import classification_error, name_clusters
from modeling_common import perturb

NOISY = {"input_noise_std": 0.5, "discriminator_noise_std": 0.5, "posterior": "gaussian"}


@pytest.fixture(scope="module")
def images():
    processor = LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=16)
    return LevelsDataset(load_images("digits", "validation").select(range(50)), processor, with_labels=True)


@pytest.fixture(scope="module")
def unlabelled():
    processor = LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=16)
    return LevelsDataset(load_images("digits", "validation").select(range(5)), processor)


def make_model(**fields):
    config = {"architecture": "mlp", "image_size": 8, "num_levels": 16, "latent_dim": 2, "hidden_channels": (16,)}
    config |= {"discriminator_channels": (8,), "num_labels": 10}
    model = AAEForImageClassification(AAEConfig(**(config | fields)))
    perturb(model)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_cluster_is_named_after_the_image_that_belongs_to_it_most_surely(images, batch_size):
    model = make_model(num_clusters=12)
    expected = []
    for cluster in range(12):
        shares = [model(image.unsqueeze(0)).logits.softmax(1)[0, cluster].item() for image in images.levels]
        expected.append(int(images.labels[max(range(50), key=shares.__getitem__)]))
    names = name_clusters(model, images, batch_size)
    assert names == expected
    assert len(set(names)) > 2
    # What the config takes.
    model.config.cluster_labels = names
    assert AAEConfig(**model.config.to_dict()).cluster_labels == names


@pytest.mark.parametrize("training", [True, False])
def test_naming_is_free_of_noise_and_leaves_the_mode(images, training):
    model = make_model(num_clusters=6, **NOISY).train(training)
    state = torch.get_rng_state()
    first, second = (name_clusters(model, images) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training is training


@torch.no_grad()
@pytest.mark.parametrize(
    "fields", [{}, {"num_clusters": 4, "cluster_labels": (7, 1, 1, 3)}], ids=["classes", "clusters"]
)
def test_error_is_the_share_of_wrong_images(images, fields):
    model = make_model(**fields, **NOISY)
    wrong = 0
    for image, label in zip(images.levels, images.labels.tolist(), strict=True):
        probabilities = model.code_probabilities(image.unsqueeze(0))[0].tolist()
        names = fields.get("cluster_labels", range(10))
        shares = dict.fromkeys(names, 0.0)
        for probability, name in zip(probabilities, names, strict=True):
            shares[name] += probability
        wrong += max(shares, key=shares.__getitem__) != label
    assert 0 < wrong < 50
    model.train()
    for batch_size in (7, 128):
        assert classification_error(model, images, batch_size) == pytest.approx(wrong / 50)
    assert not model.training


def test_images_without_labels_are_refused(unlabelled):
    model = make_model(num_clusters=4)
    with pytest.raises(ValueError, match="validation must hold labels: clusters get their names from them"):
        name_clusters(model, unlabelled)
    with pytest.raises(ValueError, match="dataset must hold labels to measure an error"):
        classification_error(make_model(), unlabelled)


def test_error_of_clusters_without_names_is_refused(images):
    with pytest.raises(ValueError, match="cluster_labels must be set before an error is measured: see name_clusters"):
        classification_error(make_model(num_clusters=10), images)

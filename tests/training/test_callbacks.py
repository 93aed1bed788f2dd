import numpy as np
import pytest
import torch
from PIL import Image

from hf_latentgen.data import load_images, stream_levels


@pytest.fixture
def pictures(tmp_path):
    """Reads the pictures of a run: file name to array."""

    def read(folder="run"):
        return {path.name: np.asarray(Image.open(path)) for path in sorted((tmp_path / folder / "samples").iterdir())}

    return read


def test_grids_of_the_chosen_epochs(make_trainer, pictures):
    make_trainer(num_train_epochs=3, sample_epochs=[0, 2]).train()
    found = pictures()
    assert list(found) == [
        f"{name}_epoch_{epoch}.png" for name in ("reconstructions", "samples") for epoch in ("000", "002")
    ]
    assert found["samples_epoch_000.png"].ndim == 2
    assert len(np.unique(found["samples_epoch_000.png"])) > 10
    assert not np.array_equal(found["reconstructions_epoch_000.png"], found["reconstructions_epoch_002.png"])


def test_grids_of_all_epochs_show_the_same_latents(make_trainer, pictures):
    make_trainer(num_train_epochs=1, sample_epochs=[0, 1], learning_rate=0.0).train()
    found = pictures()
    assert len(found) == 4
    np.testing.assert_array_equal(found["samples_epoch_000.png"], found["samples_epoch_001.png"])


def test_a_training_that_stops_within_an_epoch_leaves_the_grid_before_training(make_trainer, pictures):
    make_trainer(num_train_epochs=1, sample_epochs=[0]).train()
    expected = pictures()
    make_trainer("short", max_steps=1, sample_epochs=[0, 1]).train()
    assert pictures("short").keys() == expected.keys()
    for name, picture in pictures("short").items():
        np.testing.assert_array_equal(picture, expected[name])


def test_grids_show_the_averaged_weights(make_trainer, pictures, tmp_path):
    trainer = make_trainer(num_train_epochs=2, sample_epochs=[2], ema_decay=0.999, learning_rate=0.1)
    trainer.train()
    drawn = pictures()["samples_epoch_002.png"]
    callback = next(
        entry for entry in trainer.callback_handler.callbacks if type(entry).__name__ == "ImageGridCallback"
    )
    callback._draw(2, trainer.args, trainer.state, trainer.model)
    np.testing.assert_array_equal(pictures()["samples_epoch_002.png"], drawn)
    trainer._average = None
    callback._draw(2, trainer.args, trainer.state, trainer.model)
    assert not np.array_equal(pictures()["samples_epoch_002.png"], drawn)


@pytest.mark.parametrize("training", [True, False])
def test_drawing_leaves_mode_weights_and_generators_alone(make_trainer, pictures, training):
    trainer = make_trainer(sample_epochs=[1], ema_decay=0.5)
    model = trainer.model.train(training)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    trainer.state.is_world_process_zero = True
    callback = next(
        entry for entry in trainer.callback_handler.callbacks if type(entry).__name__ == "ImageGridCallback"
    )
    callback._draw(1, trainer.args, trainer.state, model)
    assert len(pictures()) == 2
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_one_process_draws(make_trainer, tmp_path):
    trainer = make_trainer(sample_epochs=[1])
    trainer.state.is_world_process_zero = False
    callback = next(
        entry for entry in trainer.callback_handler.callbacks if type(entry).__name__ == "ImageGridCallback"
    )
    callback._draw(1, trainer.args, trainer.state, trainer.model)
    assert not (tmp_path / "run" / "samples").exists()


def test_each_pass_over_a_stream_is_an_epoch(make_trainer, processor, pictures):
    trainer = make_trainer(max_steps=4, sample_epochs=[0, 1, 2])
    images = load_images("digits", "train").select(range(32))
    trainer.train_dataset = stream_levels(images.to_iterable_dataset(), processor)
    trainer.train()
    assert [name for name in pictures() if name.startswith("samples")] == [f"samples_epoch_00{n}.png" for n in range(3)]

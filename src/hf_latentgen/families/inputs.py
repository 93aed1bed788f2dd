"""What families of images, and of texts, share: the parts of a trainer, and the splits that are measured."""

import functools
import math
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from hf_latentgen.data import (
    LevelsDataset,
    TokenBlocksDataset,
    class_names,
    load_images,
    load_text,
    stream_levels,
    stream_token_blocks,
    usable_labels,
)
from hf_latentgen.data.labels import without_classes
from hf_latentgen.data.levels import replace_pixels
from hf_latentgen.data.looks import look_at
from hf_latentgen.data.speakers import renamed_copies
from hf_latentgen.evaluation.baselines import baseline_scores
from hf_latentgen.evaluation.text import NUM_BYTES, text_baselines
from hf_latentgen.families.family import Data, Setup
from hf_latentgen.hub.loading import Checkpoint, new_model
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.models.tokenization_bytes import ByteTokenizer, bytes_from_text
from hf_latentgen.training.few_labels import FewLabelsDataset
from hf_latentgen.training.trainer import LatentTrainer

logger = logging.get_logger(__name__)

# Ids of a block of text.
BLOCK_SIZE = 1024
# Values of images, and bytes, that a code without a network counts in seconds.
COUNTED_VALUES, COUNTED_BYTES = 2**24, 2**18
# Images, or blocks of text, of a stream among which the next one is drawn.
SHUFFLE_BUFFER = 10_000


def image_parts(setup: Setup, needs_labels: bool = False, is_taught: bool = False) -> dict:
    """Arguments of a trainer of images by name: model, processor, training and validation images.

    The labels of validation images only measure; those of training images also teach. Validation images are kept in
    memory even when they come from a stream: they are few, and needed every epoch.

    Args:
        setup: what to train, on what.
        needs_labels: whether validation images come with labels.
        is_taught: whether training images do.
    """
    name, streaming = setup.dataset["name"], setup.dataset.get("streaming", False)
    training = load_images(name, "train", data_dir=setup.data_dir, streaming=streaming)
    validation = load_images(name, "validation", data_dir=setup.data_dir, streaming=streaming)
    if "leave_out_classes" in setup.dataset:
        left_out = setup.dataset["leave_out_classes"]
        training, validation = (without_classes(images, left_out) for images in (training, validation))
    if setup.checkpoint is None:
        config = AutoConfig.for_model(**setup.model)
        if needs_labels:
            _name_classes(config, "num_labels" in setup.model, class_names(training), name)
        model, processor = new_model(config), LevelsImageProcessor.for_config(config)
    else:
        model, processor = setup.checkpoint.model.cpu(), setup.checkpoint.processor
        if needs_labels and not _has_classes(model.config, class_names(training)):
            raise ValueError(f"dataset must have the classes of {setup.checkpoint.name}, got {class_names(training)}")
    check_looks(training, processor, setup)
    if isinstance(training, Dataset):
        levels = LevelsDataset(training, processor, is_taught, setup.skipped)
    else:
        # Levels are smaller than files, and one shard is read at a time.
        stream = stream_levels(training, processor, is_taught, setup.skipped)
        levels = stream.shuffle(seed=setup.seed, buffer_size=SHUFFLE_BUFFER, max_buffer_input_shards=1)
    if "num_labelled" in setup.dataset:
        levels = _few_labels(setup.dataset, levels, is_taught)
    held_out = LevelsDataset(validation, processor, needs_labels, setup.skipped)
    if "replaced_pixels" in setup.dataset:
        if not isinstance(levels, LevelsDataset):
            raise ValueError("dataset.replaced_pixels needs a data set in memory: dataset.streaming must be false")
        for images in (levels, held_out):
            # Once for all epochs: a resumed training sees the same images.
            share = setup.dataset["replaced_pixels"]
            images.levels = replace_pixels(images.levels, share, processor.num_levels, setup.seed)
    return {"model": model, "processing_class": processor, "train_dataset": levels, "eval_dataset": held_out}


def check_looks(images: Dataset | IterableDataset, processor: LevelsImageProcessor, setup: Setup) -> None:
    """Warn that a model makes images smaller.

    Raises:
        ValueError: it makes coloured images grey, and nobody said that it may.
    """
    looks, name = look_at(images), setup.dataset["name"]
    if looks is None:
        return
    origin = "the recipe" if setup.checkpoint is None else setup.checkpoint.name
    if looks.has_colours and processor.num_channels == 1 and not setup.dataset.get("allow_grey", False):
        remedy = "model.num_channels=3 keeps the colours" if setup.checkpoint is None else "train a model of its own"
        raise ValueError(
            f"dataset.allow_grey must be true (--allow-grey) to train on the images of {name} without their colours: "
            f"num_channels of {origin} is 1; {remedy}"
        )
    size: Any = processor.size
    if min(looks.width, looks.height) > size.height:
        logger.warning(
            f"the images of {name}, {looks.width}x{looks.height}, become {size.width}x{size.height}, "
            f"the size of {origin}"
        )


def text_parts(setup: Setup) -> dict:
    """Arguments of a trainer of texts by name: model, tokenizer, blocks of ids of training and validation texts."""
    model: LatentGenModel
    if setup.checkpoint is None:
        # What a model draws need not be UTF-8, and shall be printed all the same.
        model, tokenizer = new_model(AutoConfig.for_model(**setup.model)), ByteTokenizer(errors="replace")
    else:
        model, tokenizer = setup.checkpoint.model.cpu(), setup.checkpoint.processor
    section = setup.dataset
    name, block_size = section["name"], section.get("block_size", BLOCK_SIZE)
    where = {"data_dir": setup.data_dir, "streaming": section.get("streaming", False)}
    training = load_text(name, "train", **where)
    if "renamed_copies" in section:
        training = renamed_copies(training, section["renamed_copies"], setup.seed)
    if isinstance(training, Dataset):
        blocks: TokenBlocksDataset | IterableDataset = TokenBlocksDataset(training, block_size)
    else:
        blocks = stream_token_blocks(training, block_size).shuffle(seed=setup.seed, buffer_size=SHUFFLE_BUFFER)
    held_out = TokenBlocksDataset(load_text(name, "validation", **where), block_size)
    return {"model": model, "processing_class": tokenizer, "train_dataset": blocks, "eval_dataset": held_out}


def image_data(checkpoint: Checkpoint, name: str, split: str, data_dir: str | None) -> Data:
    """Levels of the training and validation images, and of those to score, with labels where there are any."""
    processor, config = checkpoint.processor, checkpoint.model.config
    return Data(functools.cache(lambda part: read_levels(processor, name, part, data_dir, config)), split)


def read_levels(
    processor: LevelsImageProcessor, name: str, split: str, data_dir: str | None, config: PreTrainedConfig | None = None
) -> LevelsDataset:
    """Levels of all images of a split, with labels where there are any, of the classes that a configuration names."""
    images = load_images(name, split, data_dir=data_dir)
    is_known = config is None or _has_classes(config, class_names(images))
    if not is_known:
        logger.warning(f"the classes of {name} are not those of the model, and are ignored: {class_names(images)}")
    return LevelsDataset(images, processor, with_labels=is_known and usable_labels(images))


def text_data(checkpoint: Checkpoint, name: str, split: str, data_dir: str | None) -> Data:
    """The documents of the training and validation texts, and of those to score, as bytes."""
    return Data(
        lambda part: [bytes_from_text(text) for text in load_text(name, part, data_dir=data_dir)["text"]], split
    )


def image_codes(trainer: LatentTrainer) -> dict[str, float]:
    """Bits per dimension of the validation images for each baseline, which has seen a part of the training images.

    Of a stream, none.
    """
    train, validation, config = trainer.train_dataset, trainer.eval_dataset, trainer.model.config
    if not isinstance(train, LevelsDataset) or not isinstance(validation, LevelsDataset):
        return {}
    # Every so manieth image: files may be in the order of their classes.
    stride = math.ceil(train.levels.numel() / COUNTED_VALUES)
    return baseline_scores(train.levels[::stride].numpy(), validation.levels.numpy(), config.num_levels)


def text_codes(trainer: LatentTrainer) -> dict[str, float]:
    """Bits per byte of the beginning of the validation texts for each baseline, after the end of the training texts.

    Of a stream, none.
    """
    train, validation = trainer.train_dataset, trainer.eval_dataset
    if not isinstance(train, TokenBlocksDataset) or not isinstance(validation, TokenBlocksDataset):
        return {}
    # Each block begins with the last id of the one before; what is no byte is a mark.
    ids = (blocks.input_ids[:, 1:].flatten() for blocks in (train, validation))
    seen, scored = (part[part < NUM_BYTES].byte().numpy().tobytes() for part in ids)
    return text_baselines(seen[-COUNTED_BYTES:], scored[: COUNTED_BYTES // 4])


def _has_classes(config: PreTrainedConfig, names: list[str] | None) -> bool:
    """Whether these are the classes of a configuration, as far as both have names: numbers alone tell nothing."""
    known = list((config.id2label or {}).values())
    return names is None or names == known or any(name.startswith("LABEL_") for name in known)


def _name_classes(config: PreTrainedConfig, is_given: bool, names: list[str] | None, source: str) -> None:
    """Give the classes of a configuration the names that a data set has for them.

    Raises:
        ValueError: the recipe says another number of classes.
    """
    if names is None:
        return
    if is_given and config.num_labels != len(names):
        raise ValueError(f"model.num_labels must be {len(names)}, the classes of {source}, got {config.num_labels}")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def _few_labels(section: dict, levels: LevelsDataset | IterableDataset, is_taught: bool) -> FewLabelsDataset:
    if not is_taught or not isinstance(levels, LevelsDataset):
        raise ValueError("dataset.num_labelled needs a model that learns from labels, and a data set in memory")
    return FewLabelsDataset(
        levels, section["num_labelled"], section.get("labelled_per_batch", 32), section.get("label_seed", 0)
    )

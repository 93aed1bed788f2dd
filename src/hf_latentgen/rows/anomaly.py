"""How unusual files are, and what validation images score: what the commands print, and where they write."""

import shutil
from pathlib import Path
from typing import cast

from hf_latentgen.evaluation.anomaly import Calibration, anomaly_scores, calibrate, check_method
from hf_latentgen.evaluation.files import levels_of_files, score_files
from hf_latentgen.evaluation.provenance import read_record
from hf_latentgen.families import find_family
from hf_latentgen.hub.files import CALIBRATION, has_weights, model_files, weights_sha256
from hf_latentgen.hub.loading import ROWS, load
from hf_latentgen.rows.command import print_table
from hf_latentgen.rows.evaluation import data_of


def calibrate_command(
    checkpoint: str,
    data: str | None,
    output_dir: str | None,
    background: str | None,
    revision: str | None,
    data_dir: str | None,
) -> None:
    """Write what validation images score into the folder of a checkpoint, or elsewhere with a copy of the model.

    Raises:
        ValueError: no folder is named for a checkpoint of the Hub, or one that holds another model; no data is named;
            or as in [`calibrate`].
    """
    loaded = load(checkpoint, revision)
    check_method(loaded.model, "bits_per_dim")
    if output_dir is None and not any(folder.is_dir() for folder in (Path(checkpoint), ROWS / checkpoint)):
        raise ValueError(f"output_dir must be named for {checkpoint}, which is no folder of yours, got None")
    target = loaded.folder if output_dir is None else Path(output_dir)
    if target.exists() and not target.is_dir():
        raise ValueError(f"output_dir must be a folder, got the file {target}")
    if has_weights(target) and weights_sha256(target) != weights_sha256(loaded.folder):
        raise ValueError(f"output_dir must be a folder without another model, got {target}")
    name, dataset_options = data_of(loaded, data, read_record(loaded.folder))
    validation = find_family(loaded.model_type).load_data(loaded, name, "test", data_dir).validation
    second = None if background is None else load(background)
    calibration = calibrate(loaded, validation, name, second, dataset_options.get("leave_out_classes", ()))
    if target.resolve() != loaded.folder.resolve():
        for file in model_files(loaded.folder):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(loaded.folder / file, target / file)
    calibration.write(target)
    images = f"{calibration.num_images:,} validation images of {calibration.dataset}"
    print(f"{target / CALIBRATION}: {', '.join(calibration.quantiles)} of {images}")


def score_command(
    data: str,
    model: str,
    revision: str | None,
    method: str | None,
    false_alarm_rate: float | None,
    background: str | None,
    file_format: str,
    seed: int,
) -> None:
    """Print the score of each file, and with a method or a rate also how unusual it is.

    Raises:
        ValueError: the background model is another one than that of the calibration, or as in [`anomaly_scores`],
            [`Calibration`] and [`score_files`].
        FileNotFoundError: the checkpoint has no calibration, and needs one.
    """
    if background is not None and method != "likelihood_ratio":
        raise ValueError(f"background must go with --method likelihood_ratio, got {method}")
    loaded = load(model, revision)
    headers, sentence = ["file", loaded.model.score_name], ""
    if method is None and false_alarm_rate is None:
        rows = [list(pair) for pair in score_files(loaded.model, loaded.processor, data, seed).items()]
    else:
        check_method(loaded.model, method or "bits_per_dim")
        second = None if background is None else load(background)
        known, threshold = None, None
        if false_alarm_rate is not None or method == "typicality":
            known = Calibration.read(loaded.folder)
        method = method or cast(Calibration, known).best_method
        if known is not None and false_alarm_rate is not None:
            threshold = known.threshold(method, false_alarm_rate)
            if second is not None and weights_sha256(second.folder) != known.background_sha256:
                raise ValueError(f"background must have the weights {known.background_sha256}, got {background}")
            images = f"{known.num_images:,} validation images of {known.dataset}"
            sentence = f"unusual: {method} above {threshold:.4f}, as for {false_alarm_rate:g} of {images}"
        names, levels = levels_of_files(loaded.processor, data)
        bits = anomaly_scores(loaded.model, levels, seed=seed)
        given: dict = {"background": second and second.model, "usual_bits": known and known.mean_bits_per_dim}
        scores = anomaly_scores(loaded.model, levels, method, **given, bits=bits, seed=seed).tolist()
        headers += [method] if threshold is None else [method, "unusual"]
        marks = [()] * len(scores) if threshold is None else [(score > threshold,) for score in scores]
        rows = [[*row, *mark] for *row, mark in zip(names, bits.tolist(), scores, marks, strict=True)]
    print_table(headers, rows, file_format)
    if sentence and file_format == "table":
        print(sentence)

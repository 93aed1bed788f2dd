"""The metric `bits_per_dim`: `evaluate.load("src/hf_latentgen/evaluation/modules/bits_per_dim")`, offline."""

import datasets
import evaluate
import numpy as np

from hf_latentgen.models.bits import nats_to_bits_per_dim

DESCRIPTION = """\
Bits per dimension of a discrete likelihood: the mean negative log-likelihood of an image in nats, divided by ln 2 and
by the number of dimensions of the real (never of a padded) image. Lower is better; uniform levels give
log2(num_levels).
"""
KWARGS_DESCRIPTION = """
Args:
    negative_log_likelihoods (`list` of `float`): nats of each image, summed over its pixels.
    num_dims (`int`): `C * H * W` of one image.

Returns:
    `bits_per_dim` (`float`): over all images. Each image counts once, however the images were split into batches.

Examples:
    >>> metric = evaluate.load("src/hf_latentgen/evaluation/modules/bits_per_dim")
    >>> round(metric.compute(negative_log_likelihoods=[282.0], num_dims=784)["bits_per_dim"], 3)
    0.519
"""
CITATION = """\
@inproceedings{theis2016note,
  title={A note on the evaluation of generative models},
  author={Theis, Lucas and van den Oord, Aaron and Bethge, Matthias},
  booktitle={International Conference on Learning Representations},
  year={2016}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, KWARGS_DESCRIPTION)
class BitsPerDim(evaluate.Metric):
    """Bits per dimension of negative log-likelihoods in nats."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=KWARGS_DESCRIPTION,
            features=datasets.Features({"negative_log_likelihoods": datasets.Value("float64")}),
        )

    def _compute(self, negative_log_likelihoods: list[float], num_dims: int) -> dict[str, float]:
        if num_dims < 1:
            raise ValueError(f"num_dims must be at least 1, got {num_dims}")
        nats = np.asarray(negative_log_likelihoods, dtype=np.float64)
        if nats.size == 0:
            raise ValueError("negative_log_likelihoods must hold at least one value, got none")
        if not np.isfinite(nats).all():
            raise ValueError(f"negative_log_likelihoods must be finite, got {nats[~np.isfinite(nats)][0]}")
        return {"bits_per_dim": float(nats_to_bits_per_dim(nats.mean(), num_dims))}

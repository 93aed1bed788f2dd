"""The metric `bits_per_byte`: `evaluate.load("src/hf_latentgen/evaluation/modules/bits_per_byte")`, offline."""

import datasets
import evaluate
import numpy as np

from hf_latentgen.models.bits import nats_to_bits_per_byte

DESCRIPTION = """\
Bits per byte of a language model: the sum of the negative log-likelihoods in nats, divided by ln 2 and by the number of
bytes they score. It does not depend on the tokenizer. Lower is better; guessing among all bytes gives 8.
"""
KWARGS_DESCRIPTION = """
Args:
    negative_log_likelihoods (`list` of `float`): nats of each window or document, summed over its bytes.
    num_bytes (`list` of `int`): number of bytes that each of them scores; bytes that are only context do not count.

Returns:
    `bits_per_byte` (`float`): all nats over all bytes. Each byte counts once, however the text was cut into windows.

Examples:
    >>> metric = evaluate.load("src/hf_latentgen/evaluation/modules/bits_per_byte")
    >>> result = metric.compute(negative_log_likelihoods=[1500.0, 40.0], num_bytes=[1000, 20])
    >>> round(result["bits_per_byte"], 3)
    2.178
"""
CITATION = """\
@article{gao2020pile,
  title={The {Pile}: An 800GB Dataset of Diverse Text for Language Modeling},
  author={Gao, Leo and Biderman, Stella and Black, Sid and Golding, Laurence and Hoppe, Travis and Foster, Charles and
    Phang, Jason and He, Horace and Thite, Anish and Nabeshima, Noa and Presser, Shawn and Leahy, Connor},
  journal={arXiv preprint arXiv:2101.00027},
  year={2020}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, KWARGS_DESCRIPTION)
class BitsPerByte(evaluate.Metric):
    """Bits per byte of negative log-likelihoods in nats."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"negative_log_likelihoods": datasets.Value("float64"), "num_bytes": datasets.Value("int64")}
            ),
        )

    def _compute(self, negative_log_likelihoods: list[float], num_bytes: list[int]) -> dict[str, float]:
        nats, counts = np.asarray(negative_log_likelihoods, dtype=np.float64), np.asarray(num_bytes, dtype=np.int64)
        if nats.size == 0:
            raise ValueError("negative_log_likelihoods must hold at least one value, got none")
        if not np.isfinite(nats).all():
            raise ValueError(f"negative_log_likelihoods must be finite, got {nats[~np.isfinite(nats)][0]}")
        if counts.min() < 1:
            raise ValueError(f"num_bytes must be at least 1 each, got {counts.min()}")
        return {"bits_per_byte": float(nats_to_bits_per_byte(nats.sum(), int(counts.sum())))}

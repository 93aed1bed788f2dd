import bz2
import copy
import math

import numpy as np
import pytest
import torch

from hf_latentgen import LocalTransformerConfig, LocalTransformerForCausalLM
from hf_latentgen.evaluation.text import (
    count_bytes,
    counting_bits_per_byte,
    document_nats,
    full_context,
    sample_text,
    text_baselines,
    text_scores,
    token_nats,
)
from modeling_common import perturb
from training_common import assert_equal_weights

CONTENT = bytes(np.random.default_rng(0).integers(0, 256, 70, dtype=np.uint8))


@pytest.fixture
def model():
    config = LocalTransformerConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, window=5
    )
    model = LocalTransformerForCausalLM(config).eval()
    perturb(model)
    return model


@torch.no_grad()
def test_nats_of_a_document_are_those_of_one_pass_over_it(model):
    ids = torch.tensor([[257, *CONTENT, 258]])
    expected = model(ids, labels=ids).loss.item() * (len(CONTENT) + 1)
    assert full_context(model) == 9
    for context, stride in ((9, 7), (9, 1000), (9, 1), (1000, 3)):
        assert document_nats(model, CONTENT, context, stride) == pytest.approx(expected, rel=1e-5)
    # Less context than the model can use gives another score.
    assert document_nats(model, CONTENT, 1, 1) != pytest.approx(expected, rel=1e-4)


def test_a_layer_of_full_attention_sees_everything(model):
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert full_context(model) == 8192


@torch.no_grad()
def test_context_of_layers_with_windows_of_their_own():
    config = LocalTransformerConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        window=5,
        layer_windows=[2, [3, 5], 4],
    )
    model = LocalTransformerForCausalLM(config).eval()
    perturb(model)
    assert full_context(model) == 9
    ids = torch.arange(30).unsqueeze(0)
    # The id 9 before the one to predict changes its probability, the one before that does not.
    for back, is_seen in ((9, True), (10, False)):
        changed = ids.clone()
        changed[0, -1 - back] += 1
        logits = [model(input_ids=one).logits[0, -2] for one in (ids, changed)]
        assert (not torch.equal(*logits)) == is_seen


@pytest.mark.parametrize("name", ["context", "stride"])
def test_bad_windows_are_refused(model, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        document_nats(model, CONTENT, **({"context": 8, "stride": 8} | {name: 0}))


def test_scores_are_all_nats_over_all_bytes(model):
    documents = [CONTENT[:60], CONTENT[60:]]
    scores = text_scores(model, documents, 8)
    nats = sum(document_nats(model, content, 8) for content in documents)
    assert scores["nll_nats"] == pytest.approx(nats)
    assert scores["num_bytes"] == 70
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / 70)


def test_dynamic_evaluation_scores_first_and_learns_afterwards(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    still, learning = (text_scores(model, [CONTENT * 8], 8, rate) for rate in (None, 1e-2))
    assert_equal_weights(model.state_dict(), before)
    assert learning["num_bytes"] == still["num_bytes"] == 560
    # What comes again after it was learned costs less.
    assert learning["bits_per_byte"] < still["bits_per_byte"] - 0.05
    # The first part is scored by the weights as they are: with nothing after it there is nothing gained.
    still, learning = (text_scores(model, [CONTENT], 8, rate) for rate in (None, 1e-2))
    assert learning["nll_nats"] == pytest.approx(still["nll_nats"], rel=1e-6)


def test_a_step_of_dynamic_evaluation_is_one_of_its_optimizer(model):
    ids = torch.tensor([[257, *CONTENT, 258]])
    expected = copy.deepcopy(model)
    optimizer, nats = torch.optim.SGD(expected.parameters(), 0.1), 0.0
    for start in (1, 41):
        found = token_nats(expected(ids[:, : start + 40]).logits, ids[:, : start + 40])[0, start - 1 :]
        nats += found.sum().item()
        optimizer.zero_grad()
        found.mean().backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        optimizer.step()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert document_nats(model, CONTENT, 1000, 40, optimizer) == pytest.approx(nats, rel=1e-6)
    for found, weight in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, weight)


def test_what_is_not_labelled_is_not_scored():
    labels = torch.tensor([[257, 65, -100, 258, 256], [0, 255, 1, 2, -100]])
    logits = torch.randn(2, 5, 259)
    nats = token_nats(logits, labels)
    expected = logits.log_softmax(-1)
    assert nats[0, 0] == -expected[0, 0, 65]
    assert nats[1, 2] == -expected[1, 2, 2]
    assert nats[0, 1] == nats[1, 3] == 0
    assert count_bytes(labels).tolist() == [1, 3]


def test_an_untrained_model_guesses_among_all_ids(model):
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    expected = (len(CONTENT) + 1) * math.log2(259) / len(CONTENT)
    assert text_scores(model, [CONTENT], 8)["bits_per_byte"] == pytest.approx(expected)


def test_counting_is_the_interpolated_estimate_of_witten_and_bell():
    # Order 0 after "aab": a twice, b once, two different bytes.
    seen_a = (2 + 2 / 256) / (3 + 2)
    assert counting_bits_per_byte(b"aab", b"a", 0) == pytest.approx(-math.log2(seen_a))
    # Order 1 after "b" of "abaab": a once, one different byte; order 0: a three times of five.
    order_0 = (3 + 2 / 256) / (5 + 2)
    assert counting_bits_per_byte(b"abaab", b"a", 1) == pytest.approx(-math.log2((1 + order_0) / 2))
    # The counts go on: a run of one byte costs less and less.
    assert counting_bits_per_byte(b"", b"a" * 100, 2) < counting_bits_per_byte(b"", b"a" * 10, 2) < 8


def test_baselines():
    text = b"the cat sat on the mat, the dog sat on the log. " * 40
    baselines = text_baselines(text, text[:480])
    assert baselines["bz2_bits_per_byte"] == 8 * (len(bz2.compress(text + text[:480])) - len(bz2.compress(text))) / 480
    assert baselines["counting_4_bits_per_byte"] < 0.5 < baselines["counting_0_bits_per_byte"]
    assert set(baselines) == {f"{name}_bits_per_byte" for name in ("bz2", "xz", "counting_0", "counting_4")}


def test_sample_goes_on_from_the_prompt_and_is_valid_text(model):
    sample = sample_text(model, b"To be", seed=3)
    assert sample.startswith("To be")
    assert sample == sample_text(model, b"To be", seed=3)
    sample.encode()


def test_a_model_of_so_many_positions_is_scored_in_windows_that_fit():
    fields = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window": 5}
    models = []
    for most in (None, 12, 18):
        torch.manual_seed(0)
        model = LocalTransformerForCausalLM(LocalTransformerConfig(max_position_embeddings=most, **fields)).eval()
        perturb(model)
        models.append(model)
    assert [full_context(model) for model in models] == [9, 6, 9]
    scores = [text_scores(model, [CONTENT], full_context(model))["nll_nats"] for model in models]
    # Positions are relative: nothing is lost where the whole context fits twice.
    assert scores[2] == pytest.approx(scores[0], rel=1e-5)
    assert scores[1] == pytest.approx(scores[0], rel=0.1)
    with pytest.raises(ValueError, match="context must be less than max_position_embeddings=12, got 12"):
        document_nats(models[1], CONTENT, 12)


def test_a_text_goes_on_as_far_as_the_positions_reach():
    fields = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "window": 5}
    config = LocalTransformerConfig(max_position_embeddings=20, eos_token_id=None, **fields)
    torch.manual_seed(0)
    text = sample_text(LocalTransformerForCausalLM(config).eval(), bytes(range(97, 123)))
    assert text.startswith("abcdefghijklmnopqr")
    assert "s" not in text[18:19]


def test_a_prompt_of_any_length_stays_whole_where_positions_have_no_end(model, monkeypatch):
    monkeypatch.setattr("hf_latentgen.evaluation.text.SAMPLE_LENGTH", 3)
    assert sample_text(model, b"a" * 200).startswith("a" * 200)

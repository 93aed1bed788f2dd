"""Behaviours that every model of the package shares with those of transformers, as test bodies to inherit."""

import inspect
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

WEIGHTS = "model.safetensors"
COMPILING = ("test_training_step_compiles_to_one_graph", "test_exported_model_runs_on_another_batch_size")
# What loading does whatever the configuration: that every weight of each arrives is tested for all of them.
LOADING = (
    *("test_dtype_argument", "test_device_map", "test_folder_without_weights_is_refused"),
    *("test_truncated_weights_are_refused", "test_weights_of_another_size_are_refused"),
    "test_config_of_another_model_is_refused",
)
# Fields of a small transformer of transformers.
TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


def perturb(model: PreTrainedModel, std: float = 0.2) -> None:
    """Moves every parameter away from its start: layers that start at zero would hide what stands before them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn_like(parameter))


def tensors(output: ModelOutput) -> dict[str, Tensor]:
    """The fields of an output that are tensors, without their graphs."""
    return {name: value.detach() for name, value in output.items() if isinstance(value, Tensor)}


def gradients(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """The gradient of the loss by each parameter, from a fixed state of the global generator."""
    torch.manual_seed(0)
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_compiles(model: PreTrainedModel, inputs: dict[str, Tensor], backend: str) -> None:
    """The compiled model is one graph with the outputs of the model itself, and with its gradients while training."""
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    if model.training:
        expected = gradients(model, inputs)
        torch.manual_seed(0)
        model.zero_grad()
        compiled(**inputs).loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
    else:
        with torch.no_grad():
            expected, found = tensors(model(**inputs)), tensors(compiled(**inputs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()


class CommonModelTests:
    """A subclass sets `model_class`, overrides the fixture `config`, tiny, and `make_inputs`.

    Compilers take seconds for a configuration: that named by `compiled` stands for those in `others`, which are slow,
    and those for what other code there is. Where `compiles_soon` is False it is slow as well. It also stands for all in
    what loading refuses.

    Its forward must be deterministic in `eval()`, return per-example tensors whose first axis is the batch, and a
    scalar `loss` that is a mean over the batch.
    """

    model_class: type[PreTrainedModel]
    auto_class = AutoModel
    compiled: str
    others: tuple[str, ...] = ()
    compiles_soon = False

    def pytest_generate_tests(self, metafunc):
        name = metafunc.function.__name__
        if "config" not in metafunc.fixturenames or name not in COMPILING + LOADING:
            return
        names = [self.compiled]
        if name in COMPILING:
            slow = [pytest.param(name, marks=pytest.mark.slow) for name in (self.compiled, *self.others)]
            names = [self.compiled, *slow[1:]] if self.compiles_soon else slow
        # As a mark, which takes the place of the parameters of the fixture.
        metafunc.definition.add_marker(pytest.mark.parametrize("config", names, indirect=True))

    @pytest.fixture
    def config(self) -> PreTrainedConfig:
        raise NotImplementedError

    def make_inputs(self, config: PreTrainedConfig, batch_size: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def forward(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> ModelOutput:
        """The output of a model with its loss."""
        return model(**inputs)

    @pytest.fixture
    def model(self, config) -> PreTrainedModel:
        model = self.model_class(config)
        perturb(model)
        return model.eval()

    @pytest.fixture
    def inputs(self, config) -> dict[str, Tensor]:
        return self.make_inputs(config, batch_size=3)

    @pytest.fixture
    def folder(self, model, tmp_path):
        """A checkpoint of the model."""
        model.save_pretrained(tmp_path)
        return tmp_path

    def test_checkpoint_holds_safetensors_and_json_only(self, model, folder):
        expected = {"config.json", WEIGHTS} | ({"generation_config.json"} if model.can_generate() else set())
        assert {path.name for path in folder.iterdir()} == expected

    @torch.no_grad()
    def test_loaded_model_has_the_same_outputs(self, model, inputs, folder):
        expected = tensors(model(**inputs))
        for loader in (self.model_class, self.auto_class):
            loaded = loader.from_pretrained(folder)
            assert type(loaded) is self.model_class
            assert not loaded.training
            torch.testing.assert_close(tensors(loaded(**inputs)), expected, atol=0, rtol=0)

    def test_auto_config_knows_the_model_type(self, config, folder):
        loaded = AutoConfig.from_pretrained(folder)
        assert type(loaded) is type(config)
        assert json.loads(loaded.to_json_string())["model_type"] == type(config).model_type
        assert self.model_class(loaded).num_parameters() == self.model_class(config).num_parameters()

    def test_model_can_be_built_on_the_meta_device(self, config):
        with torch.device("meta"):
            model = self.model_class(config)
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}

    def test_loading_fills_every_parameter_and_buffer(self, model, folder):
        loaded, report = self.model_class.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
        for expected, found in (
            (model.named_parameters(), loaded.named_parameters()),
            (model.named_buffers(), loaded.named_buffers()),
        ):
            torch.testing.assert_close(dict(found), dict(expected), atol=0, rtol=0)

    def test_parameters_missing_from_a_checkpoint_are_initialised(self, config):
        fresh = dict(self.model_class(config).named_parameters())
        loaded = []
        for _ in range(2):
            torch.manual_seed(1)
            loaded.append(dict(self.model_class.from_pretrained(None, config=config, state_dict={}).named_parameters()))
        # Memory that nobody filled would differ from one load to the next, or be zero where the model is not.
        torch.testing.assert_close(*loaded, atol=0, rtol=0)
        for name, parameter in loaded[0].items():
            assert torch.isfinite(parameter).all(), name
            assert parameter.any() == fresh[name].any(), name

    def test_main_input_is_the_first_argument_of_forward(self, inputs):
        first = list(inspect.signature(self.model_class.forward).parameters)[1]
        assert first == self.model_class.main_input_name == next(iter(inputs))

    @torch.no_grad()
    def test_forward_is_deterministic_in_eval(self, model, inputs):
        first = tensors(self.forward(model, inputs))
        assert "loss" in first
        torch.testing.assert_close(tensors(self.forward(model, inputs)), first, atol=0, rtol=0)

    @torch.no_grad()
    def test_tuple_equals_dict(self, model, inputs):
        expected = model(**inputs).to_tuple()
        found = model(**inputs, return_dict=False)
        assert type(found) is tuple
        torch.testing.assert_close(found, expected, atol=0, rtol=0)

    @torch.no_grad()
    def test_outputs_of_an_example_do_not_depend_on_its_batch(self, model, inputs):
        whole = tensors(self.forward(model, inputs))
        singles = [
            tensors(self.forward(model, {name: value[i : i + 1] for name, value in inputs.items()})) for i in range(3)
        ]
        loss = whole.pop("loss")
        assert loss.item() == pytest.approx(sum(single.pop("loss").item() for single in singles) / 3, rel=1e-5)
        for name, value in whole.items():
            assert torch.isfinite(value).all(), name
            torch.testing.assert_close(torch.cat([single[name] for single in singles]), value, atol=1e-5, rtol=1e-5)

    def test_every_parameter_gets_a_gradient(self, model, inputs):
        model.train()
        for name, gradient in gradients(model, inputs).items():
            assert gradient is not None, name
            assert torch.isfinite(gradient).all(), name
            assert gradient.any(), name

    def learned(self, output: ModelOutput) -> Tensor:
        """The losses that have to fall while two examples are learned."""
        return output.loss.detach()

    def test_two_examples_can_be_learned(self, config):
        model = self.model_class(config).train()
        inputs = self.make_inputs(config, batch_size=2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses, is_learned = [], False
        while len(losses) < 80 and not is_learned:
            optimizer.zero_grad()
            output = model(**inputs)
            output.loss.backward()
            optimizer.step()
            losses.append(self.learned(output))
            # Three in a row are no luck of a draw.
            is_learned = len(losses) > 3 and all((loss <= 0.5 * losses[0]).all() for loss in losses[-3:])
        assert is_learned, losses

    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
    def test_gradient_checkpointing_recomputes_and_keeps_the_gradients(self, model, inputs):
        if not model.supports_gradient_checkpointing:
            pytest.skip(f"{self.model_class.__name__} does not support gradient checkpointing")
        model.train()
        calls = []
        blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for block in blocks:
            # Hooks of the block itself stand outside of what is recomputed.
            next(block.children()).register_forward_pre_hook(lambda *_: calls.append(1))
        expected = gradients(model, inputs)
        once = len(calls)
        assert once >= len(blocks) > 0
        model.gradient_checkpointing_enable()
        found = gradients(model, inputs)
        # The second backward pass ran each block again.
        assert len(calls) == 3 * once
        torch.testing.assert_close(found, expected)

    @pytest.mark.timeout(300)
    def test_training_step_compiles_to_one_graph(self, model, inputs):
        assert_compiles(model.train(), inputs, backend="aot_eager")

    @pytest.mark.timeout(300)
    @torch.no_grad()
    def test_exported_model_runs_on_another_batch_size(self, config, model, inputs):
        batch = torch.export.Dim("batch", min=2, max=64)
        dynamic = {name: {0: batch} for name in inputs}
        exported = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic).module()
        for size in (3, 5):
            others = self.make_inputs(config, batch_size=size)
            torch.testing.assert_close(tensors(exported(**others)), tensors(model(**others)), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_bf16_autocast_is_finite_and_close(self, model, inputs):
        expected = tensors(self.forward(model, inputs))
        with torch.autocast("cpu", torch.bfloat16):
            found = tensors(self.forward(model, inputs))
        assert found["loss"].dtype == torch.float32
        assert all(torch.isfinite(value).all() for value in found.values())
        assert found["loss"] != expected["loss"]
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=0.03, atol=0)

    @torch.no_grad()
    def test_bf16_weights_are_finite_and_close(self, model, inputs):
        expected = self.forward(model, inputs).loss
        found = tensors(self.forward(model.to(torch.bfloat16), inputs))
        assert all(torch.isfinite(value).all() for value in found.values())
        torch.testing.assert_close(found["loss"].float(), expected, rtol=0.03, atol=0)

    @torch.no_grad()
    def test_dtype_argument(self, model, inputs, folder):
        loaded = self.model_class.from_pretrained(folder, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(
            self.forward(loaded, inputs).loss.float(), self.forward(model, inputs).loss, rtol=0.03, atol=0
        )

    @torch.no_grad()
    @pytest.mark.parametrize("device_map", ["cpu", "auto"])
    def test_device_map(self, model, inputs, folder, device_map):
        loaded = self.model_class.from_pretrained(folder, device_map=device_map)
        assert all(not parameter.is_meta for parameter in loaded.parameters())
        found = self.forward(loaded, {name: value.to(loaded.device) for name, value in inputs.items()}).loss
        torch.testing.assert_close(found.cpu(), self.forward(model, inputs).loss)

    def test_folder_without_weights_is_refused(self, folder):
        (folder / WEIGHTS).unlink()
        with pytest.raises(OSError, match=WEIGHTS):
            self.model_class.from_pretrained(folder)

    @pytest.mark.parametrize("fraction", [0, 0.5, 0.99])
    def test_truncated_weights_are_refused(self, folder, fraction):
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: int(len(content) * fraction)])
        with pytest.raises(SafetensorError, match="header too small|not fully covered"):
            self.model_class.from_pretrained(folder)

    def test_weights_of_another_size_are_refused(self, folder):
        other = self.model_class.from_pretrained(folder)
        state = {name: torch.zeros(*value.shape, 2) for name, value in other.state_dict().items()}
        other.save_pretrained(folder, state_dict=state)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            self.model_class.from_pretrained(folder)

    def test_config_of_another_model_is_refused(self, config, folder):
        BertConfig().save_pretrained(folder)
        with pytest.raises(StrictDataclassError, match=f"model_type must be '{config.model_type}', got 'bert'"):
            self.model_class.from_pretrained(folder)

"""What the tests of all trainers share: looking into a training, and comparing two of them to the last bit."""

import fcntl
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_latentgen.training import adversarial


class AtStep(TrainerCallback):
    """Calls a function with the model before the given step, or after each step when none is given."""

    def __init__(self, action, before=None):
        self.action, self.before = action, before

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.before:
            self.action(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.before is None:
            self.action(model)


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def fill(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def assert_same_state(first, second):
    """Two nested states, such as an optimizer's, are equal to the last bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same_state(first[name], second[name])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_same_state(*pair)
    else:
        assert first == second


def assert_same_checkpoint(first, second):
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    for name in names:
        if name.endswith(".safetensors"):
            assert_same_state(load_file(first / name), load_file(second / name))
        elif name.endswith(".pt"):
            assert_same_state(torch.load(first / name), torch.load(second / name))
        elif name == "rng_state.pth":
            # The state of NumPy's generator is no plain tensor.
            states = [torch.load(folder / name, weights_only=False) for folder in (first, second)]
            assert torch.equal(states[0]["cpu"], states[1]["cpu"])
            assert states[0]["python"] == states[1]["python"]


def steps_of(history):
    """The entries of a history without the speed and the wall time, which differ from run to run."""
    times = ("elapsed_seconds", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    entries = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
    return [{name: value for name, value in entry.items() if name not in times} for entry in entries]


def assert_resumed_is_straight(make, folder, step, options):
    """A training of eight steps that starts again from the checkpoint of a step ends as the one without a break.

    `make` takes the name of a folder in `folder`, and training arguments. Returns the folder of the resumed run.
    """
    straight = make("straight", **options)
    straight.train()
    straight.save_model()
    torch.manual_seed(12345)
    resumed = make("resumed", **options)
    name = f"checkpoint-{step}"
    checkpoint = shutil.copytree(folder / "straight" / name, folder / "resumed" / name)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    resumed.save_model()
    assert resumed.state.global_step == straight.state.global_step == 8
    assert steps_of(resumed.state.log_history) == steps_of(straight.state.log_history)
    assert_same_checkpoint(folder / "resumed" / "checkpoint-8", folder / "straight" / "checkpoint-8")
    assert_same_state(*(load_file(folder / run / "model.safetensors") for run in ("straight", "resumed")))
    return folder / "resumed"


def launch_two_processes(repository, *command):
    """What two processes under `accelerate launch` printed, which ended well."""
    launch = repository / "configs" / "accelerate" / "ddp.yaml"
    # Port 0: any free one.
    accelerate = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", launch, "--main_process_port", "0"),
    ]
    with Path(tempfile.gettempdir(), "hf_latentgen_two_processes.lock").open("w") as lock:
        # One launch at a time, whichever worker runs it: two that begin together take the same free port.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _launch([*accelerate, *map(str, command)])


def _launch(command):
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launcher:
        try:
            output, _ = launcher.communicate()
        finally:
            # At this signal it ends the processes that it started; without effect when it has finished.
            launcher.terminate()
    assert launcher.returncode == 0, output[-3000:]
    return output


def logs_of_training(trainer) -> list[dict]:
    """What was logged of the training itself, entry by entry."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def messages(caplog) -> list[str]:
    """What the adversarial trainer has logged."""
    return [record.getMessage() for record in caplog.records if record.name == adversarial.__name__]

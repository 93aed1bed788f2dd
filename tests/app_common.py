"""What the tests of the demo share."""

import torch

from hf_latentgen import ByteTokenizer, LevelsImageProcessor


def make_checkpoint(model, folder):
    """The folder, after model and processor are saved in it; its weights are random and not near zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    config = model.config
    (ByteTokenizer() if config.reads_text else LevelsImageProcessor.for_config(config)).save_pretrained(folder)
    return folder


def last(steps):
    """What a request shows in the end."""
    *_, final = steps
    return final

"""Optimizers that are no choice of transformers' `optim`."""

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_latentgen.models.networks import matrix_layers
from hf_latentgen.training.arguments import LatentTrainingArguments


def muon(model: PreTrainedModel, args: LatentTrainingArguments) -> torch.optim.Optimizer:
    """Muon for the weights of convolutions and linear layers, and AdamW for all other parameters.

    Those others are biases, embeddings, and the weights of transposed convolutions, which have no row for each output.

    The step of a weight, a matrix with a row for each output, is made orthogonal: all of its singular values are equal.
    It is scaled to the size that a step of AdamW would have, so that similar learning rates fit both.

    Args:
        model: what is trained.
        args: `muon_learning_rate`, `learning_rate` of AdamW, its momenta, and `weight_decay`, which is that of the
            matrices.

    Source: Jordan et al. (2024), Muon: an optimizer for hidden layers; Liu et al. (2025), Muon is scalable for LLM
    training, eq. 4, for the scale.
    """
    # It takes a second to import.
    from pytorch_optimizer import Muon

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # The last layer of a language model may share its weight with the embedding.
    matrices = {id(layer.weight) for layer in matrix_layers(model).values()} - embeddings
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rest = {
        "params": [parameter for parameter in trained if id(parameter) not in matrices],
        "use_muon": False,
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "weight_decay": 0.0,
    }
    weights = {
        "params": [parameter for parameter in trained if id(parameter) in matrices],
        "use_muon": True,
        "use_adjusted_lr": True,
        "lr": args.muon_learning_rate,
        "weight_decay": args.weight_decay,
    }
    # A log tells the learning rate of the first group.
    return Muon([rest, weights])

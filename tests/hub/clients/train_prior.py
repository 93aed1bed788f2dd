"""Trains a small latent prior that is pushed at each save and at the end, and loads it again."""

import sys

from hf_latentgen import LatentGenPipeline, LatentTrainingArguments, LevelsDataset
from hf_latentgen.data import load_images
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
from hf_latentgen.training.latent_prior import PriorTrainer, encoded
from hub_common import assert_same_weights, make_families

autoencoder, processor, *_ = make_families()["vae"]
latents = encoded(autoencoder, LevelsDataset(load_images("digits", "validation").select(range(64)), processor))
arguments = LatentTrainingArguments(
    output_dir=sys.argv[1],
    num_train_epochs=2,
    per_device_train_batch_size=32,
    eval_strategy="epoch",
    save_strategy="epoch",
    ema_decay=0.5,
    report_to="none",
    push_to_hub=True,
    hub_model_id="ada/prior",
)
trainer = PriorTrainer(
    LatentDenoiser(2, hidden_size=8, num_blocks=1),
    arguments,
    autoencoder=autoencoder,
    train_dataset=latents,
    eval_dataset=latents,
    processing_class=processor,
)
trainer.train()
print(trainer.push_to_hub().oid)
pipe = LatentGenPipeline.from_pretrained("ada/prior")
assert_same_weights(pipe.model, autoencoder)
with trainer.evaluated_weights():
    assert_same_weights(pipe.denoiser, trainer.model)

"""Trains a small model that is pushed at each save and at the end."""

import sys

from hf_latentgen import ELBOTrainer, LatentTrainingArguments, LevelsDataset, LevelsImageProcessor, VAEConfig, VAEModel
from hf_latentgen.data import load_images

processor = LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=16)
images = LevelsDataset(load_images("digits", "validation").select(range(64)), processor)
arguments = LatentTrainingArguments(
    output_dir=sys.argv[1],
    num_train_epochs=2,
    per_device_train_batch_size=32,
    eval_strategy="epoch",
    save_strategy="epoch",
    sample_epochs=[1],
    ema_decay=0.5,
    report_to="tensorboard",
    push_to_hub=True,
    hub_model_id="ada/trained",
    hub_private_repo=True,
)
config = VAEConfig(architecture="mlp", image_size=8, num_levels=16, latent_dim=2, hidden_channels=(8, 8))
trainer = ELBOTrainer(
    VAEModel(config), arguments, train_dataset=images, eval_dataset=images, processing_class=processor
)
trainer.train()
print(trainer.push_to_hub().oid)
with trainer.evaluated_weights():
    trainer.model.save_pretrained(sys.argv[2])

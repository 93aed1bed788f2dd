"""The families of models, one object each. What kind of model something is, is asked of these."""

from hf_latentgen.families.aae import AAE
from hf_latentgen.families.family import Family
from hf_latentgen.families.local_transformer import LOCAL_TRANSFORMER
from hf_latentgen.families.local_transformer_image import LOCAL_TRANSFORMER_IMAGE
from hf_latentgen.families.prior import PRIOR
from hf_latentgen.families.vae import VAE
from hf_latentgen.families.vlae import VLAE

# In the order of the tables.
FAMILIES: tuple[Family, ...] = (VAE, VLAE, AAE, PRIOR, LOCAL_TRANSFORMER_IMAGE, LOCAL_TRANSFORMER)


def find_family(model_type: str | None, families: tuple[Family, ...] = FAMILIES) -> Family:
    """The family of a model type.

    Raises:
        ValueError: there is none.
    """
    for family in families:
        if family.model_type == model_type:
            return family
    raise ValueError(f"model_type must be one of {[family.model_type for family in families]}, got {model_type!r}")

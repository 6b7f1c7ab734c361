"""Opens encoders: the model that a build names, or the one that an index was built with."""

from pathlib import Path

from searchrl.errors import ConfigurationError
from services.retriever.encoders import ENCODERS
from services.retriever.encoders.base import Encoder, EncoderDescription, EncoderOptions, EncoderSettings


def open_encoder(folder: Path, options: EncoderOptions = EncoderOptions()) -> Encoder:
    """Open the model in ``folder``.

    Raises:
        ConfigurationError: the folder holds no usable model.
    """
    for encoder in ENCODERS.values():
        if encoder.is_model_folder(folder):
            return encoder(folder, options)
    raise ConfigurationError(f"{folder} is not a model folder: it has neither modules.json nor config.json")


def reopen_encoder(description: EncoderDescription, settings: EncoderSettings) -> Encoder:
    """Open the encoder an index was built with, from the folder in the settings if the model has moved.

    Raises:
        ConfigurationError: the folder is missing or holds another model.
    """
    folder = settings.folder or Path(description.folder)
    if not folder.is_dir():
        raise ConfigurationError(
            f"the index needs the encoder '{description.name}', which is not at {folder}; set encoder.folder to it"
        )
    # The device is not part of the description: an index may be built on a GPU and served on a CPU.
    options = EncoderOptions(
        description.query_prefix,
        description.passage_prefix,
        description.is_normalized,
        description.max_tokens,
        settings.device,
    )
    encoder = open_encoder(folder, options)
    if encoder.description.sha256 != description.sha256:
        raise ConfigurationError(
            f"the model at {folder} is not the one the index was built with; set encoder.folder, or rebuild the index"
        )
    return encoder

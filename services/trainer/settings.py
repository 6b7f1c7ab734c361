"""Defines the settings of the trainer's process: ports, keys and logging. ``run_config`` has those of the run."""

from pydantic_settings import SettingsConfigDict

from searchrl.platform.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """Process settings, from ``TRAINER_`` variables and ``--set``."""

    model_config = SettingsConfigDict(env_prefix="TRAINER_")

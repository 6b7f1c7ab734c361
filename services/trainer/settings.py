"""How does the trainer's process listen and log? What it trains is in ``run_config``."""

from pydantic_settings import SettingsConfigDict

from searchrl.platform.service_settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """Process settings, from ``TRAINER_`` variables and ``--set``."""

    model_config = SettingsConfigDict(env_prefix="TRAINER_")

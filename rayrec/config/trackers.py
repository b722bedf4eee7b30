"""Experiment trackers; no secrets here."""

from typing import Literal

from pydantic import field_validator

from rayrec.config.section import Section


class MlflowConfig(Section):
    """Where MLflow keeps the runs; a token or password comes from the environment (MLFLOW_TRACKING_TOKEN, ...)."""

    tracking_uri: str  # http://host:5000, or sqlite:///PATH where there is no server
    experiment: str = "rayrec"

    @field_validator("tracking_uri")
    @classmethod
    def _usable_and_without_secrets(cls, value: str) -> str:
        scheme, sign, rest = value.partition("://")
        if "@" in rest.partition("/")[0] or ("@" in rest and scheme.startswith("http")) or "password=" in rest:
            raise ValueError(  # the value stays out of the message
                "holds a user or password; take it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                " (or MLFLOW_TRACKING_TOKEN) in the environment"
            )
        if scheme.startswith("file") or not (sign or value == "databricks"):
            raise ValueError(
                "MLflow no longer keeps runs in plain folders; give a server (http://host:5000) or sqlite:///PATH"
            )
        return value


class WandbConfig(Section):
    """Where Weights & Biases keeps the runs; the API key comes from the environment (WANDB_API_KEY)."""

    project: str = "rayrec"
    entity: str | None = None  # None: the key's own
    mode: Literal["online", "offline"] = "online"  # offline: to be sent later, with `wandb sync`


class TrackersConfig(Section):
    """Experiment trackers beside the files that every run writes; no secrets here."""

    tensorboard: bool = False
    mlflow: MlflowConfig | None = None
    wandb: WandbConfig | None = None

    @property
    def writes_files(self) -> str | None:
        """The first tracker that can only write into a folder."""
        if self.tensorboard:
            return "tensorboard"
        return "wandb.mode: offline" if self.wandb and self.wandb.mode == "offline" else None

"""The settings, read once: options first, then HPO_* variables, then these defaults."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="HPO_", secrets_dir=None, extra="ignore")

    server: str = "http://127.0.0.1:8000"
    database_url: str = "sqlite:///hpo.db"
    token: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000

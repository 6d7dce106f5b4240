"""Options as a file or the environment holds them: flat values, not yet checked."""

import json
import os
from pathlib import Path
from typing import Any

from .errors import ConfigError

ENV_CONFIG = "SGL_SPARSEKV_CONFIG"
"""Environment variable with inline JSON, or `@path` of a JSON or YAML file."""


def read_config_file(path: str) -> dict[str, Any]:
    """Flat values of a JSON or YAML file.

    Raises:
        ConfigError: the file is missing, unreadable, or not a mapping.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}") from None
    return _mapping(text, f"config file {path}")


def read_env_config() -> dict[str, Any]:
    """Flat values of `SGL_SPARSEKV_CONFIG`; empty when it is not set."""
    text = os.environ.get(ENV_CONFIG, "").strip()
    if not text:
        return {}
    return read_config_file(text[1:]) if text.startswith("@") else _mapping(text, ENV_CONFIG)


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        import yaml

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{source} must be JSON or YAML") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{source} must be a mapping of option names to values")
    return values

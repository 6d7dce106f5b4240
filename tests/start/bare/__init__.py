"""A tiny model of families that transformers has no class of: a configuration alone.

Their configuration classes are code that comes with a checkpoint, or SGLang's own. SGLang makes up
the weights (`--load-format dummy`), the same for every server. What sees or hears is built; with
`language_model_only` in a configuration SGLang serves the family's text and asks for no processor.
"""

import json
from pathlib import Path
from typing import Any

from ..tiny import write_tokenizer
from .general import GENERAL
from .language import LANGUAGE
from .media import MEDIA

FLAGS = ("--load-format", "dummy", "--trust-remote-code")
BFLOAT16 = ("K2HorizonForCausalLM", "XllmForCausalLM")
"""Families that SGLang serves in no other type."""
BARE: dict[str, dict[str, Any]] = {
    **{name: {**GENERAL, **more} for name, more in LANGUAGE.items()},
    **{name: {"language_model_only": True, **more} for name, more in MEDIA.items()},
}
"""By architecture: its configuration, model type included."""
CODE = '''"""A configuration that keeps whatever it is given, its parts as configurations."""

from transformers import CONFIG_MAPPING, PretrainedConfig


class Block(dict):
    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return part(name, self[name])


def part(name, value):
    if isinstance(value, list):
        return [part(name.removesuffix("s"), one) for one in value]
    if not isinstance(value, dict) or not name.endswith(("_config", "attention", "ffn")):
        return value
    model_type = value.get("model_type")
    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type](**value)
    return Part(**value) if "hidden_size" in value else Block(value)


class Part(PretrainedConfig):
    def __init__(self, **said):
        super().__init__(**{name: part(name, value) for name, value in said.items()})


class Configuration(Part):
    model_type = "{model_type}"

    def __init__(self, **said):  # without one transformers would make its own
        super().__init__(**said)
'''


def flags_of(architecture: str) -> tuple[str, ...]:
    """Of every server of a family."""
    return (*FLAGS, *(("--dtype", "bfloat16") if architecture in BFLOAT16 else ()))


def write_bare(architecture: str, folder: Path) -> Path:
    """A folder with the configuration of a family, the code of that and a tokenizer."""
    return write_as({**BARE[architecture], "architectures": [architecture]}, folder)


def write_as(said: dict[str, Any], folder: Path) -> Path:
    """A folder with this configuration, the code of it and a tokenizer."""
    from transformers import CONFIG_MAPPING

    folder.mkdir(exist_ok=True)
    if said["model_type"] not in CONFIG_MAPPING:
        said["auto_map"] = {"AutoConfig": "configuration.Configuration"}
        code = CODE.replace("{model_type}", said["model_type"])
        (folder / "configuration.py").write_text(code)
    (folder / "config.json").write_text(json.dumps(said))
    write_tokenizer(folder)
    return folder

"""Models that draft for another one: each is started beside a target, as SGLang's flags have it."""

from pathlib import Path

from .bare import write_as
from .bare.general import text
from .tiny import write_llama

ENDS = (
    *("NextN", "MTP", "Eagle", "Eagle3", "DSpark", "DraftModel", "DSparkModel"),
    *("AssistantModel", "AssistantForCausalLM"),
)
STARTS = ("Eagle3", "DFlash")
ALGORITHMS = {
    "DFlash": "DFLASH",
    "LiLiCorr": "DFLASH",
    "MuseGlimmerAssistant": "DFLASH",
    "Assistant": "FROZEN_KV_MTP",
    "DSpark": "DSPARK",
    "Eagle3": "EAGLE3",
}
"""What a part of a draft's name says; others are `EAGLE`, which `NEXTN` stands for."""


def drafts(architecture: str) -> bool:
    """Whether it names such a model."""
    return architecture.endswith(ENDS) or architecture.startswith(STARTS)


def write_target(folder: Path) -> Path:
    """What drafts are started beside, written once."""
    return folder if folder.exists() else write_llama(folder, num_hidden_layers=4)


def draft_flags(architecture: str, folder: Path) -> tuple[str, ...]:
    """Those of a server that decodes with this draft, whose configuration is written here."""
    known = (name for part, name in ALGORITHMS.items() if part in architecture)
    write_as(text("llama", architecture), folder)
    algorithm = next(known, "EAGLE")
    return "--speculative-algorithm", algorithm, "--speculative-draft-model-path", str(folder)

"""What reads images and sound for a tiny model: transformers' own parts with their defaults."""

from pathlib import Path
from typing import Any

from .tiny import write_tokenizer

MARKS = (
    *("image", "video", "audio", "boi", "eoi", "boa", "eoa", "vision_start", "vision_end"),
    *("image_start", "image_end", "slice_start", "slice_end", "image_id_start", "image_id_end"),
    *("img_line_break", "boi_image", "begin_of_audio", "img_tile", "img_break", "image_break"),
    *("audio_bos", "audio_eos", "video_start", "video_end", "grid_bos", "grid_eos"),
    *("vision_bos", "vision_eos"),
)
"""What processors ask a tokenizer for a token of."""
OPTIONS = {("ernie4_5_vl_moe", "video_processor"): {"draw_on_frames": False}}
"""By model type and part: what a default would need a file for."""


def write_processor(model_type: str, folder: Path) -> None:
    """A tokenizer, and the processor of this type where there is one.

    Raises:
        Exception: transformers cannot build it from defaults.
    """
    import transformers
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    if name is None:
        write_tokenizer(folder)
        return
    marks = {f"{mark}_token": f"w{number}" for number, mark in enumerate(MARKS, 3)}
    tokenizer = write_tokenizer(folder, marks)
    kind = getattr(transformers, name)
    known = {
        "image_processor": IMAGE_PROCESSOR_MAPPING_NAMES,
        "video_processor": VIDEO_PROCESSOR_MAPPING_NAMES,
        "feature_extractor": FEATURE_EXTRACTOR_MAPPING_NAMES,
    }
    parts: dict[str, Any] = {"tokenizer": tokenizer}
    for part in kind.get_attributes():
        table = known.get(part, {})
        # A family with experts takes the parts of the one without.
        if names := table.get(model_type) or table.get(model_type.removesuffix("_moe")):
            parts[part] = getattr(transformers, _first(names))(
                **OPTIONS.get((model_type, part), {})
            )
    kind(**parts).save_pretrained(folder)


def _first(names: Any) -> str:
    """A class's name; some tables say which library it is of."""
    return str(next(iter(names.values())) if isinstance(names, dict) else names)

"""What stands for a family's model: whose names are families, and configurations alone."""

from pathlib import Path

from .bare import BARE, write_as, write_bare
from .drafts import draft_flags, drafts
from .families import families, merged, no_families


def test_names_that_only_a_flag_chooses_are_no_families(sglang_plugins: None) -> None:
    """Whatever else SGLang's registry has is one, and has one row."""
    from sglang.srt.models.registry import ModelRegistry

    names, others = [family.architecture for family in families()], no_families()
    assert "LlamaForCausalLM" in names and "TransformersForCausalLM" in others
    assert sorted((*names, *others)) == sorted(ModelRegistry.get_supported_archs())


def test_a_draft_is_known_by_its_name_and_started_beside_a_target(tmp_path: Path) -> None:
    found = {
        "LlamaForCausalLMEagle3": "EAGLE3",
        "DeepseekV3ForCausalLMNextN": "EAGLE",
        "Gemma4AssistantForCausalLM": "FROZEN_KV_MTP",
        "DFlashLagunaForCausalLM": "DFLASH",
        "Qwen3DSparkModel": "DSPARK",
    }
    assert all(map(drafts, found)) and not drafts("LlamaForCausalLM")
    for name, algorithm in found.items():
        flags = draft_flags(name, tmp_path / name)
        assert flags[1] == algorithm and (Path(flags[3]) / "config.json").is_file()


def test_parts_of_a_configuration_are_read_as_such(tmp_path: Path) -> None:
    """Known ones by their class, others as they are; tables of numbers stay tables."""
    from transformers import AutoConfig, Qwen2Config

    said = {
        "model_type": "nobodys",
        "text_config": {"model_type": "qwen2", "hidden_size": 48},
        "vision_config": {"hidden_size": 24, "depth": 2},
        "block_configs": [{"attention": {"no_op": True}}],
        "sparse_attention_config": {"every": 2},
        "rope_parameters": {"rope_theta": 7.0},
    }
    read = AutoConfig.from_pretrained(write_as(said, tmp_path), trust_remote_code=True)
    assert isinstance(read.text_config, Qwen2Config) and read.text_config.hidden_size == 48
    assert read.vision_config.depth == 2 and read.vision_config.to_dict()["hidden_size"] == 24
    assert read.block_configs[0].attention.no_op is True
    assert read.sparse_attention_config["every"] == 2
    assert read.rope_parameters["rope_theta"] == 7.0


def test_every_configuration_that_stands_alone_can_be_read(
    sglang_plugins: None, tmp_path: Path
) -> None:
    """By transformers, with the classes that SGLang brings along."""
    import sglang.srt.utils.hf_transformers.common  # noqa: F401
    from transformers import AutoConfig

    for name in BARE:
        folder = write_bare(name, tmp_path / name)
        read = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        assert read.model_type == BARE[name]["model_type"], name


def test_keys_are_merged_part_by_part() -> None:
    said = {"a": 1, "part": {"b": 2, "c": 3}, "none": None}
    more = {"part": {"c": 4}, "none": {"d": 5}, "e": 6}
    assert merged(said, more) == {"a": 1, "part": {"b": 2, "c": 4}, "none": {"d": 5}, "e": 6}

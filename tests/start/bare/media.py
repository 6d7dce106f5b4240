"""Families that see or hear as well: their configurations, part by part."""

from typing import Any

from .general import SECTIONS, sight, text

QWEN2 = text("qwen2", "Qwen2ForCausalLM", num_hidden_layers=2, intermediate_size=160)
QWEN3 = text("qwen3", "Qwen3ForCausalLM")
LLAVA = {
    **text("llava"),
    "mm_hidden_size": 64,
    "mm_vision_tower": "none",
    "projector_hidden_act": "gelu",
    "vision_config": sight("clip_vision_model"),
    "text_config": text("llama"),
    "image_token_index": 5,
}
DEEPSEEK = text("deepseek_v2", "DeepseekV2ForCausalLM", num_key_value_heads=4)
QWEN_SIGHT = sight(
    "qwen3_vl_moe", deepstack_visual_indexes=[], num_position_embeddings=16, in_channels=3
)
NEMOTRON = text("nemotron_h", hybrid_override_pattern="M*-E")
JANUS = {"depth": 2, "n_embed": 64, "projector_type": "mlp_gelu"}
MEDIA: dict[str, dict[str, Any]] = {
    "BailingMM2NativeForConditionalGeneration": {
        "language_model_only": False,
        "model_type": "bailingmm_moe_v2_lite",
        "llm_config": text("bailing_moe_v2"),
        "mrope_section": [2, 1, 1],
        "vision_config": QWEN_SIGHT,
    },
    "BailingMMNativeForConditionalGeneration": {
        "language_model_only": False,
        "model_type": "bailingmm_moe_v2_lite",
        "llm_config": text("bailing_moe_v2"),
        "mrope_section": [2, 1, 1],
        "vision_config": QWEN_SIGHT,
    },
    "BailingMoeV3VLForConditionalGeneration": {
        "model_type": "bailing_moe_v3_vl",
        "text_config": text("bailing_hybrid"),
        "vision_config": QWEN_SIGHT,
    },
    "Cosmos3EdgeForConditionalGeneration": {
        "model_type": "cosmos3_edge",
        "text_config": text("cosmos3_edge_text", hidden_act="relu2", **SECTIONS),
    },
    "Cosmos3ForConditionalGeneration": {
        "model_type": "cosmos3_omni",
        "text_config": text("qwen3_vl_text", **SECTIONS),
        "vision_config": QWEN_SIGHT,
    },
    "DeepseekOCRForCausalLM": {
        "model_type": "deepseek-ocr",
        "tile_tag": "2D",
        "global_view_pos": "head",
        "text_config": text("deepseek_v2", use_mla=False, topk_method="greedy"),
        "language_config": text("deepseek_v2", use_mla=False, topk_method="greedy"),
        "projector_config": {"projector_type": "linear", "input_dim": 2048, "n_embed": 64},
        "vision_config": {"model_type": "vision"},
    },
    "DeepseekVL2ForCausalLM": {
        "model_type": "deepseek_vl_v2",
        "tile_tag": "2D",
        "global_view_pos": "head",
        "language_config": text("deepseek_v2", use_mla=False, topk_method="greedy"),
        "projector_config": {
            "projector_type": "downsample_mlp_gelu",
            "n_embed": 64,
            "input_dim": 64,
        },
        "vision_config": {"model_type": "vision", "width": 64, "layers": 2, "heads": 4},
    },
    "DotsOCRForCausalLM": {
        **text("dots_ocr", num_hidden_layers=2, intermediate_size=160),
        "vision_config": sight("dots_vit", embed_dim=64),
    },
    "DotsVLMForCausalLM": {
        **text("dots_vlm"),
        "vision_config": sight("dots_vit", embed_dim=64),
    },
    "Glm5NextForConditionalGeneration": {
        "model_type": "glm5_next",
        "text_config": text(
            "glm5_next_text",
            "Glm5NextForConditionalGeneration",
            num_key_value_heads=4,
            qk_rope_head_dim=0,
        ),
        "vision_config": sight("glm5_next_vision", swiglu_limit=7.0),
    },
    "InternS1ForConditionalGeneration": {
        "model_type": "interns1",
        "text_config": QWEN3,
        "vision_config": sight(
            norm_type="rms_norm",
            qk_normalization=False,
            qkv_bias=True,
            drop_path_rate=0.0,
            initializer_factor=1.0,
            use_flash_attn=False,
        ),
        "vision_feature_layer": -1,
        "downsample_ratio": 0.5,
    },
    "InternS1ProForConditionalGeneration": {
        "model_type": "interns1_pro",
        "text_config": text("qwen3_moe", **SECTIONS),
        "vision_config": QWEN_SIGHT,
    },
    "InternS2MobiusForConditionalGeneration": {
        "model_type": "interns2_mobius",
        "text_config": text("interns2_mobius_text", **SECTIONS),
        "vision_config": QWEN_SIGHT,
    },
    "InternS2PreviewForConditionalGeneration": {
        "model_type": "intern_s2_preview",
        "text_config": text("qwen3_5_moe_text", **SECTIONS),
        "vision_config": QWEN_SIGHT,
    },
    "InternVLChatModel": {
        "model_type": "internvl_chat",
        "llm_config": QWEN2,
        "vision_config": sight(
            norm_type="rms_norm",
            qk_normalization=False,
            qkv_bias=True,
            drop_path_rate=0.0,
            initializer_factor=1.0,
            use_flash_attn=False,
        ),
    },
    "JetVLMForConditionalGeneration": {
        "model_type": "jet_vlm",
        "text_config": text("jet_nemotron"),
        "vision_config": sight("siglip_vision_model"),
    },
    "KimiK25ForConditionalGeneration": {
        "model_type": "kimi_k25",
        "text_config": text("deepseek_v3"),
        "vision_config": sight("kimi_k25"),
    },
    "KimiK3ForConditionalGeneration": {
        "model_type": "kimi_k3",
        "text_config": text("kimi_linear"),
        "vision_config": sight("kimi_k3_vision"),
    },
    "KimiVLForConditionalGeneration": {
        "model_type": "kimi_vl",
        "text_config": DEEPSEEK,
        "vision_config": sight("moonvit"),
    },
    "LightOnOCRForConditionalGeneration": {
        "model_type": "lightonocr",
        "text_config": QWEN3,
        "vision_config": sight("pixtral"),
    },
    "LlavaLlamaForCausalLM": LLAVA,
    "LlavaMistralForCausalLM": LLAVA,
    "LlavaQwenForCausalLM": {**LLAVA, "num_hidden_layers": 2, "intermediate_size": 160},
    "LlavaVidForCausalLM": LLAVA,
    "LocateAnythingForConditionalGeneration": {
        "model_type": "locateanything",
        "text_config": QWEN2,
        "vision_config": sight("moonvit"),
    },
    "MiDashengLMModel": {
        "model_type": "midashenglm",
        "text_config": QWEN2,
        "audio_encoder_config": {
            "embed_dim": 64,
            "depth": 2,
            "num_heads": 4,
            "input_channels": 1,
            "n_mels": 64,
            "patch_size": [64, 4],
            "patch_stride": [64, 4],
            "target_length": 1008,
            "n_fft": 512,
            "hop_length": 160,
            "win_length": 512,
            "center": True,
            "f_min": 0,
            "f_max": 8000,
            "sample_rate": 16000,
            "mlp_ratio": 2.0,
            "qkv_bias": True,
            "init_values": None,
            "drop_rate": 0.0,
            "attn_drop_rate": 0.0,
        },
        "subsample_factor": 5,
    },
    "MiMoV2ASRForCausalLM": {**text("mimo_v2_asr"), "audio_config": {}},
    "MiniCPMO": {
        **text("minicpmo", hidden_size=128, head_dim=32, v_head_dim=32),
        "init_vision": True,
        "vision_config": sight("siglip_vision_model"),
        "audio_config": {
            "model_type": "whisper",
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
        },
        "audio_pool_step": 2,
        "version": "2.6",
        "drop_vision_last_layer": False,
        "query_num": 4,
    },
    "MiniCPMV": {
        **text("minicpmv", hidden_size=128, head_dim=32, v_head_dim=32),
        "vision_config": sight("siglip_vision_model"),
        "version": "2.6",
        "drop_vision_last_layer": False,
        "query_num": 4,
    },
    "MossVLForConditionalGeneration": {
        "model_type": "moss_vl",
        "text_config": text("moss_vl_text"),
        "vision_config": QWEN_SIGHT,
    },
    "MultiModalityCausalLM": {
        "model_type": "multi_modality",
        "language_config": text("llama"),
        "vision_config": {
            "cls": "CLIPVisionTower",
            "params": {
                "image_size": 384,
                "model_name": "siglip_large_patch16_384",
                "select_feature": "same",
                "select_layer": -1,
            },
        },
        "aligner_config": {"cls": "MlpProjector", "params": {**JANUS, "input_dim": 1024}},
        "gen_aligner_config": {"cls": "MlpProjector", "params": {**JANUS, "input_dim": 8}},
        "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 320, "n_embed": 8}},
        "gen_head_config": {
            "cls": "vision_head",
            "params": {"image_token_embed": 64, "image_token_size": 320, "n_embed": 64},
        },
    },
    "MuseSparkForConditionalGeneration": {
        "model_type": "muse_spark",
        "text_config": text("muse_spark_text", num_shared_experts=0, moe_hidden_size=64),
        "vision_config": sight("muse_spark_vision"),
        "audio_config": {
            "model_type": "muse_spark_audio",
            "hidden_sizes": [16, 16, 32, 32],
            "out_hidden_size": 64,
        },
        "out_hidden_size": 256,
        "projector_hidden_size": 64,
    },
    "NVILAForConditionalGeneration": {
        "model_type": "nvila",
        "text_config": QWEN2,
        "vision_config": sight("siglip_vision_model", hidden_size=1152),
    },
    "NVILALiteForConditionalGeneration": {
        "model_type": "nvila_lite",
        "text_config": QWEN2,
        "vision_config": sight("siglip_vision_model"),
    },
    "NemotronH_Nano_Omni_Reasoning_V3": {
        "model_type": "NemotronH_Nano_Omni_Reasoning_V3",
        "llm_config": NEMOTRON,
        "vision_config": sight(),
    },
    "NemotronH_Nano_VL_V2": {
        "model_type": "NemotronH_Nano_VL_V2",
        "llm_config": NEMOTRON,
        "vision_config": sight(),
    },
    "NemotronH_Omni_Reasoning_V3": {
        "model_type": "nemotron_h_omni",
        "llm_config": NEMOTRON,
        "vision_config": sight("radio", video_temporal_patch_size=2),
    },
    "POINTSV15ChatModel": {
        "model_type": "pointsv1.5_chat",
        "llm_config": QWEN2,
        "vision_config": sight("qwen2_vl_vision", in_chans=3, embed_dim=64, mlp_ratio=2),
    },
    "Phi4MMForCausalLM": {
        **text("phi4mm"),
        "vision_config": sight("idefics2_vision"),
        "embd_layer": {"audio_embd_layer": {"embedding_cls": "audio"}},
        "audio_processor": {
            "name": "cascades",
            "config": {
                "attention_dim": 64,
                "attention_heads": 4,
                "input_size": 80,
                "num_blocks": 2,
                "chunk_size": -1,
                "left_chunk": 18,
                "relative_attention_bias_args": {"type": "t5"},
                "encoder_embedding_config": {"input_size": 80},
            },
        },
    },
    "PixtralForConditionalGeneration": {
        "model_type": "pixtral",
        "text_config": text("mistral", kv_lora_rank=None),
        "vision_config": sight("pixtral", image_token_id=5),
    },
    "Sarashina2VisionForCausalLM": {
        "model_type": "sarashina2_vision",
        "text_config": text("llama"),
        "vision_config": sight("qwen2_vl_vision", in_chans=3, embed_dim=64, mlp_ratio=2),
    },
    "Step3VLForConditionalGeneration": {
        "model_type": "step3_vl",
        "text_config": text(
            "step3_text",
            num_attention_groups=1,
            moe_layers_enum="2,3",
            share_q_dim=32,
            share_expert_dim=32,
            moe_top_k=2,
        ),
        "vision_config": sight("step3_vision_encoder", output_hidden_size=32),
    },
    "StepVLForConditionalGeneration": {
        "model_type": "step_robotics",
        "text_config": QWEN3,
        "vision_config": sight(
            width=64,
            layers=2,
            heads=4,
            output_dim=None,
            use_abs_posemb=True,
            use_cls_token=False,
            use_rope2d=True,
            use_ln_pre=True,
            use_ln_post=False,
            mlp_ratio=2.0,
            ls_init_value=0.1,
        ),
        "projector_bias": False,
    },
    "UnlimitedOCRForCausalLM": {
        "model_type": "unlimited-ocr",
        "tile_tag": "2D",
        "global_view_pos": "head",
        "language_config": text("unlimited_language", use_mla=False, topk_method="greedy"),
        "projector_config": {"projector_type": "linear", "input_dim": 2048, "n_embed": 64},
        "vision_config": {"model_type": "vision"},
    },
    "YiVLForCausalLM": LLAVA,
}
"""By architecture."""

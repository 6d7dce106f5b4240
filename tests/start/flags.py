"""Every flag of SGLang's command line, and the values that a sweep tries."""

import argparse
from dataclasses import dataclass
from pathlib import Path

FREE = {"help", "config", "model_path", "attention_backend", "port"}
"""What every case of the sweep names, and what ends by itself."""
PLACES = ("path", "dir", "folder", "paths")
"""Ends of destinations whose values are files or folders."""
EVERY_CHOICE = (
    "quantization",
    "load_format",
    "decode_attention_backend",
    "prefill_attention_backend",
    "schedule_policy",
    "kv_cache_dtype",
)
"""Destinations of which each choice is tried; elsewhere two stand for all."""

WAITS = (
    *("--nnodes", "--node-rank", "--gated-launch-port", "--use-ray", "--grpc-mode"),
    *("--smg-grpc-mode", "--weight-cache-mode", "--checkpoint-engine-wait-weights-before-ready"),
)
"""Flags whose servers may wait for what is not there, or speak no HTTP."""

VALUES: dict[str, list[str]] = {
    "tokenizer_worker_num": ["2"],
    "detokenizer_worker_num": ["2"],
    "context_length": ["1024"],
    "json_model_override_args": ['{"rms_norm_eps": 1e-05}'],
    "model_loader_extra_config": ['{"enable_multithread_load": false}'],
    "mem_fraction_static": ["0.2"],
    "max_running_requests": ["1", "3"],
    "max_queued_requests": ["4"],
    "max_total_tokens": ["1024"],
    "chunked_prefill_size": ["-1", "64", "100"],
    "page_size": ["1", "16", "32", "64", "128"],
    "c128_page_size": ["32"],
    "max_prefill_tokens": ["128"],
    "swa_full_tokens_ratio": ["0.5"],
    "radix_eviction_policy_config": ["{}"],
    "schedule_conservativeness": ["0.3"],
    "nccl_port": ["31999"],
    "dist_init_addr": ["127.0.0.1:31998"],
    "gated_launch_port": ["31997"],
    "numa_node": ["0"],
    "gc_threshold": ["500"],
    "host": ["0.0.0.0"],
    "grpc_port": ["31996"],
    "ssl_keyfile": ["key.pem"],
    "ssl_certfile": ["cert.pem"],
    "ssl_ca_certs": ["ca.pem"],
    "device": ["cpu"],
    "base_gpu_id": ["1"],
    "tokenizer_path": ["{model}"],
    "served_model_name": ["another-name"],
    "log_level": ["info", "debug"],
    "log_level_http": ["info"],
    "log_requests_target": ["stdout"],
    "sampling_defaults": ["openai"],
    "preferred_sampling_params": ['{"top_p": 0.9}'],
    "default_chat_template_kwargs": ["{}"],
    "extra_metric_labels": ['{"team": "a"}'],
    "kv_events_config": ['{"publisher": "zmq", "endpoint": "tcp://*:31995"}'],
    "load_publish_endpoint": ["tcp://127.0.0.1:31994"],
    "forward_pass_metrics_ipc_name": ["ipc:///tmp/sparsekv-forward-pass"],
    "export_metrics_to_file_dir": ["{folder}"],
    "file_storage_path": ["{folder}"],
    "crash_dump_folder": ["{folder}"],
    "download_dir": ["{folder}"],
    "debug_tensor_dump_output_folder": ["{folder}"],
    "debug_tensor_dump_layers": ["0"],
    "prompt_tokens_buckets": ["default"],
    "generation_tokens_buckets": ["default"],
    "bucket_time_to_first_token": ["0.1"],
    "tokenizer_metrics_allowed_custom_labels": ["team"],
    "cuda_graph_config": ['{"decode": {"backend": "disabled"}}'],
    "cuda_graph_backend_decode": ["full", "disabled"],
    "cuda_graph_backend_prefill": ["tc_piecewise", "disabled"],
    "cuda_graph_bs_decode": ["1", "2"],
    "speculative_algorithm": ["EAGLE", "NGRAM"],
    "speculative_draft_model_path": ["{model}"],
    "dtype": ["auto", "half", "float16", "bfloat16", "float", "float32"],
    "mm_process_config": ["{}"],
    "limit_mm_data_per_request": ['{"image": 1}'],
    "allowed_media_domains": ["example.org"],
    "lora_paths": ["{folder}/adapter"],
    "lora_target_modules": ["q_proj"],
    "forward_hooks": ["[]"],
    "sidecar_args": ["[]"],
    "decoupled_spec_connect_endpoints": ["[]"],
    "encoder_urls": ["http://127.0.0.1:31993"],
    "encoder_register_urls": ["http://127.0.0.1:31992"],
    "unified_cache_external_linker_config": ["{}"],
    "hicache_storage_backend_extra_config": ["{}"],
    "disaggregation_mode": ["prefill", "decode"],
    "dllm_algorithm": ["LowConfidence"],
    "model_impl": ["sglang", "transformers"],
    "radix_cache_backend": ["x"],
    "swa_prefix_tails": ["1"],
    "uvicorn_access_log_exclude_prefixes": ["/health"],
    "watchdog_timeout": ["60"],
    "soft_watchdog_timeout": ["60"],
    "prefill_only_disable_kv_cache": [],
    "trace_modules": ["request"],
    "pp_size": ["2"],
    "tp_size": ["2", "4"],
}
"""By destination: what is tried instead of what the kind of a flag suggests."""
BESIDE = {"quantization": ("--dtype", "auto")}
"""By destination: without which no value of it would come far."""
TOGETHER: dict[str, str] = {
    "prefill elsewhere": "--prefill-attention-backend torch_native"
    " --decode-attention-backend sparsekv",
    "decode elsewhere": "--prefill-attention-backend sparsekv"
    " --decode-attention-backend torch_native",
    "compiled": "--enable-torch-compile --torch-compile-max-bs 4",
    "host cache with a file": "--enable-hierarchical-cache --hicache-storage-backend file",
    "LoRA": "--enable-lora --max-lora-rank 8 --lora-target-modules q_proj",
    "plain": "--disable-overlap-schedule --disable-radix-cache --page-size 16",
    "sizes": "--page-size 32 --chunked-prefill-size 128 --enable-mixed-chunk",
}
"""Flags that mean something only beside others."""


@dataclass(frozen=True)
class Case:
    """One command line of the sweep.

    Attributes:
        field: of `ServerArgs`, or a name of `TOGETHER`.
        arguments: what is added to the common ones.
    """

    field: str
    arguments: tuple[str, ...]

    @property
    def shown(self) -> str:
        """As a user writes it."""
        return " ".join(self.arguments)


def parser() -> argparse.ArgumentParser:
    """SGLang's own, with our flags."""
    from sglang.srt.server_args import ServerArgs

    found = argparse.ArgumentParser()
    ServerArgs.add_cli_args(found)
    return found


def cases(model: Path, folder: Path) -> list[Case]:
    """Every flag with representative values that are not its default, and some in company."""
    found: list[Case] = []
    for action in parser()._actions:
        if action.dest in FREE or action.dest.startswith("sparsekv"):
            continue
        for words in _values(action):
            if action.dest.endswith(PLACES):
                words = [word.format(model=model, folder=folder) for word in words]
            found.append(Case(action.dest, tuple(words)))
    return [*found, *(Case(name, tuple(line.split())) for name, line in TOGETHER.items())]


def _values(action: argparse.Action) -> list[list[str]]:
    flag = action.option_strings[0]
    if action.nargs == 0:
        return [[name] for name in action.option_strings if name.startswith("--no-")] + [[flag]]
    if action.dest in VALUES:
        return [[flag, value] for value in VALUES[action.dest]]
    if action.choices:
        # Some are a set, whose order is another in each process.
        given = action.choices if isinstance(action.choices, list) else sorted(action.choices)
        choices = [str(choice) for choice in given if choice != action.default]
        if action.dest not in EVERY_CHOICE:
            choices = list(dict.fromkeys((*choices[:1], *choices[-1:])))
        return [[flag, choice, *BESIDE.get(action.dest, ())] for choice in choices]
    kind = getattr(action.type, "__name__", "str")
    return [[flag, {"int": "2", "human_readable_int": "2", "float": "0.5"}.get(kind, "x")]]

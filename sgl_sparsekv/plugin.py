"""Entry point `sglang.srt.plugins`: every place where SGLang is touched, in one table.

SGLang logs a plugin that fails and goes on, so nothing here may fail late: `register` only writes
the table into SGLang's hook registry, and the attention backend's factory calls `missing_hooks`
and refuses to serve when one is not in place. Each hook is inert unless the
sparsekv backend was chosen. Why each is needed: `patches/README.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from .errors import UnsupportedSetup
from .host import BACKEND_NAME, version_problem


@dataclass(frozen=True)
class Hook:
    """One function of SGLang that we follow or wrap.

    Attributes:
        target: dotted path in SGLang.
        kind: "before" (may raise), "after" (sees the result) or "around" (calls the original).
        function: `module:function` below this package, imported on first call.
    """

    target: str
    kind: str
    function: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function behind the hook."""
        return self.resolve()(*args, **kwargs)

    def resolve(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(import_module(f".{module}", __package__), name)
        return function


HOOKS = (
    Hook("sglang.srt.server_args.ServerArgs.add_cli_args", "after", "backend.flags:add_flags"),
    Hook("sglang.srt.server_args.ServerArgs.from_cli_args", "around", "backend.flags:read_flags"),
    Hook(
        "sglang.srt.server_args.ServerArgs.resolve_once",
        "around",
        "backend.starting:resolve_in_one_line",
    ),
    Hook(
        "sglang.srt.entrypoints.engine.Engine._launch_subprocesses",
        "around",
        "backend.starting:launch_in_one_line",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.__init__",
        "around",
        "backend.starting:begin_in_one_line",
    ),
    Hook(
        "sglang.srt.managers.detokenizer_manager.DetokenizerManager.__init__",
        "around",
        "backend.starting:begin_in_one_line",
    ),
    Hook(
        "sglang.srt.managers.data_parallel_controller.DataParallelController.__init__",
        "around",
        "backend.starting:begin_in_one_line",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.run_event_loop",
        "around",
        "backend.first_steps:run_in_one_line",
    ),
    Hook(
        "sglang.srt.utils.watchdog.SubprocessWatchdog._check_processes",
        "around",
        "backend.first_steps:end_when_told",
    ),
    Hook(
        "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size",
        "around",
        "backend.kv_pool:cell_size_with_metadata",
    ),
    Hook(
        "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator.__init__",
        "after",
        "backend.step_room:reserve_step_buffers",
    ),
    Hook(
        "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._build_mha_kv_pool",
        "around",
        "backend.kv_pool:build_pool_with_metadata",
    ),
    Hook(
        "sglang.srt.mem_cache.allocator.paged.PagedTokenToKVPoolAllocator.alloc",
        "after",
        "backend.kv_pool:note_handed_out",
    ),
    Hook(
        "sglang.srt.mem_cache.allocator.paged.PagedTokenToKVPoolAllocator.alloc_extend",
        "after",
        "backend.kv_pool:note_handed_out",
    ),
    Hook(
        "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint_into_tree",
        "around",
        "backend.sharing:checkpoint_offered",
    ),
    Hook(
        "sglang.srt.session.session_controller.Session.create_req",
        "around",
        "backend.turns:create_turn",
    ),
    Hook(
        "sglang.srt.session.streaming_session.StreamingSession.try_cache_finished_req",
        "after",
        "backend.sharing:rewind_session",
    ),
    Hook(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
        "after",
        "backend.request_table:note_batch",
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.Req._compute_max_prefix_len",
        "around",
        "backend.views.prefix:leave_queries",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.get_new_batch_prefill",
        "before",
        "backend.views.short_memory:admit_more",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.update_running_batch",
        "before",
        "backend.views.short_memory:go_on",
    ),
    Hook(
        "sglang.srt.managers.schedule_policy.PrefillAdder._get_running_request_total_token_offset",
        "around",
        "backend.views.short_memory:tokens_to_come",
    ),
    Hook(
        "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.free_kv_row",
        "around",
        "backend.views.short_memory:free_held",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.invariant_checker"
        ".SchedulerInvariantChecker._get_total_uncached_sizes",
        "around",
        "backend.views.short_memory:held_by_requests",
    ),
    Hook(
        "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.on_release",
        "after",
        "backend.views.short_memory:forget_places",
    ),
    Hook(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.apply_logits_bias",
        "after",
        "backend.unspelled:keep_a_distribution",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler._add_request_to_queue",
        "before",
        "backend.unspelled:refuse_at_once",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.batch_result_processor"
        ".SchedulerBatchResultProcessor._apply_prefill_grammar",
        "after",
        "backend.unspelled:refuse_underway",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.batch_result_processor"
        ".SchedulerBatchResultProcessor._accept_grammar_tokens",
        "after",
        "backend.unspelled:refuse_underway",
    ),
    Hook(
        "sglang.srt.layers.attention.graph_variants.create_attention_graph_variants",
        "after",
        "backend.gate:graph_variants",
    ),
    Hook(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.__init__",
        "after",
        "backend.break_even:measure_break_even",
    ),
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner.forward",
        "after",
        "backend.host_copies:fetch_copies",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.__init__",
        "after",
        "serving.start:note_tokenizer_manager",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        "before",
        "serving.requests:check_request",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager_score_mixin.TokenizerManagerScoreMixin"
        ".score_request",
        "before",
        "serving.requests:check_score",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request",
        "after",
        "serving.requests:check_tokenized",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.output_streamer"
        "._GenerationStreamAccumulator.to_payload",
        "around",
        "serving.echo:attach_reports",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        "around",
        "serving.echo:take_report",
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._build_chat_response",
        "after",
        "serving.echo:add_to_response",
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._generate_chat_stream",
        "around",
        "serving.echo:add_to_stream",
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_completions"
        ".OpenAIServingCompletion._build_completion_response",
        "after",
        "serving.echo:add_to_response",
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_completions"
        ".OpenAIServingCompletion._generate_completion_stream",
        "around",
        "serving.echo:add_to_stream",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.init_req_max_new_tokens",
        "around",
        "serving.room:refuse_without_room",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.get_internal_state",
        "after",
        "serving.state:add_internal_state",
    ),
)


def register() -> None:
    """Announce the backend and write the hooks; called once in every SGLang process."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import add_attention_backend_choices

    add_attention_backend_choices([BACKEND_NAME])
    register_attention_backend(BACKEND_NAME)(_create_backend)
    for hook in HOOKS:
        HookRegistry.register(hook.target, _named(hook), HookType(hook.kind))
    from .backend.resolution import register_resolution

    register_resolution()


def missing_hooks() -> list[str]:
    """Targets of hooks that are not in place in this process."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return [hook.target for hook in HOOKS if hook.target not in HookRegistry._patched]


def _create_backend(runner: Any) -> Any:
    """Factory that SGLang calls for `--attention-backend sparsekv`.

    Raises:
        UnsupportedSetup: another SGLang, or one in which a hook is not in place.
    """
    problem = version_problem()
    if problem:
        raise UnsupportedSetup(problem)
    missing = missing_hooks()
    if missing:
        raise UnsupportedSetup(
            f"these hooks into SGLang are not in place: {', '.join(missing)}; run "
            "`sparsekv doctor`, and look for 'sparsekv' in SGLANG_PLUGINS and in the log above"
        )
    from .backend.factory import create_backend

    return create_backend(runner)


def _named(hook: Hook) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs)

    call.__qualname__ = hook.function
    return call

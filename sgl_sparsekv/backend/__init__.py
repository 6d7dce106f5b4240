"""The SGLang side: flags, KV pool, request options, step plan and the attention backend."""

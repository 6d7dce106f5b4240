"""Entry point `sglang.srt.platforms`: SGLang on a machine without an accelerator.

The stock wheel has no CPU kernels and dies on import there (`vllm._custom_ops`, `sgl_kernel`). As
an out-of-tree platform the plain torch paths are taken: native rotary and norms, native page
allocator, no graphs, no Triton.
"""

import os

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform


def activate() -> str | None:
    """Name our platform when nothing else would serve this machine, else None."""
    import torch

    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return None
    if torch.cuda.is_available() or torch.xpu.is_available() or _has("npu") or _has("musa"):
        return None
    if torch.backends.mps.is_available():
        return None
    return f"{__name__}:SparseKVCpuPlatform"


def _has(device: str) -> bool:
    import torch

    module = getattr(torch, device, None)
    return bool(module is not None and module.is_available())


class SparseKVCpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]
    """A CPU that runs the native (torch) implementation of every fused op."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def get_device(self, device_id: int | None = 0) -> str:
        """The device by its name, which is how SGLang reads it where no `--device` was given."""
        return "cpu"

    def is_pin_memory_available(self, device: object = None) -> bool:
        """No device copies from pinned memory."""
        return False

    def get_default_attention_backend(self) -> str:
        """SGLang's own dense backend, so that our presence alone changes nothing."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Take `forward_native` of SGLang's fused ops."""
        return "native"

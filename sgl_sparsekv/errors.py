"""Exceptions a caller may see.

SparseKVError
├── ConfigError(ValueError)        a server option is wrong: exit 2, before the model loads
├── RequestOptionError(ValueError) a request option is wrong: HTTP 400
├── UnsupportedSetup               this model, flag or SGLang cannot be served; says what to do
├── UnsupportedOnDevice            a method needs an op that the device lacks
└── StaleMetadata                  the checker found metadata that does not match K
"""


class SparseKVError(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigError(SparseKVError, ValueError):
    """A server option has a wrong value."""


class RequestOptionError(SparseKVError, ValueError):
    """A per-request option has a wrong name, type, value or place."""


class UnsupportedSetup(SparseKVError):
    """The model, a server flag or the SGLang version cannot be served."""


class UnsupportedOnDevice(SparseKVError):
    """A method needs an op that the chosen device does not have."""

    def __init__(self, method: str, op: str, device: str) -> None:
        super().__init__(
            f"method {method!r} needs the op {op!r}, which device {device!r} does not have; "
            "choose another method or device"
        )


class StaleMetadata(SparseKVError):
    """Page metadata of a sealed unit differs from what its keys give."""

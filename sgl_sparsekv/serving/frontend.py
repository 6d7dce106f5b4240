"""Sparse decoding from SGLang's frontend language.

    from sgl_sparsekv.serving.frontend import SparseKVEndpoint, sparse_gen

    sgl.set_default_backend(SparseKVEndpoint("http://localhost:30000", budget=1024))

    @sgl.function
    def ask(s, document):
        s += document + sgl.gen("draft")
        s += sparse_gen("answer", sparsekv={"method": "full"}, max_tokens=32)

The endpoint is an ordinary backend object, so its options hold in every thread that runs a program
(`run_batch`, `fork`, streams) and for nobody else; `endpoint.with_options(...)` gives a second one
for the same server. What one generation names wins over what the endpoint names.
"""

import copy
from collections.abc import Generator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import sglang as sgl
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.ir import SglGen, SglSamplingParams

from ..config import REQUEST_FIELDS, REQUEST_KEY


@dataclass(frozen=True)
class _Carrier:
    """Options of one generation, in the place of its `dtype`.

    SGLang's interpreter copies a fixed list of names from a generation to what a backend sees;
    `dtype` is the one that is meant for the backend and never sent. A backend that is not ours
    refuses the value, so the options cannot get lost.
    """

    options: dict[str, Any]
    dtype: object


class _SparseSamplingParams(SglSamplingParams):  # type: ignore[misc]
    """Sampling parameters that go out with our options."""

    sparsekv: dict[str, Any]

    def to_srt_kwargs(self) -> dict[str, Any]:
        """SGLang's arguments, and `custom_params`."""
        kwargs: dict[str, Any] = super().to_srt_kwargs()
        return {**kwargs, "custom_params": {REQUEST_KEY: self.sparsekv}}


class SparseKVEndpoint(RuntimeEndpoint):  # type: ignore[misc]
    """A server with the sparsekv backend, as an SGLang frontend backend."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,
        **options: Any,
    ) -> None:
        """Connect.

        Args:
            base_url: as for `RuntimeEndpoint`.
            api_key: as for `RuntimeEndpoint`.
            verify: as for `RuntimeEndpoint`.
            chat_template_name: as for `RuntimeEndpoint`.
            options: request options of every generation, e.g. `budget=1024`; what is not named
                stays as the server has it.

        Raises:
            ValueError: an option is unknown.
        """
        self.options = _known(options)
        super().__init__(base_url, api_key, verify, chat_template_name)

    def with_options(self, **options: Any) -> "SparseKVEndpoint":
        """The same server, with these options on top.

        Raises:
            ValueError: an option is unknown.
        """
        other = copy.copy(self)
        other.options = {**self.options, **_known(options)}
        return other

    def generate(self, s: Any, sampling_params: SglSamplingParams) -> tuple[str, dict[str, Any]]:
        """See `RuntimeEndpoint.generate`; the second result holds `sparsekv`, what was applied."""
        text, meta_info = super().generate(s, self._with_sparsekv(sampling_params))
        return text, meta_info

    def generate_stream(
        self, s: Any, sampling_params: SglSamplingParams
    ) -> Generator[tuple[str, dict[str, Any]], None, None]:
        """See `RuntimeEndpoint.generate_stream`."""
        yield from super().generate_stream(s, self._with_sparsekv(sampling_params))

    def _with_sparsekv(self, params: SglSamplingParams) -> SglSamplingParams:
        options = dict(self.options)
        values = {field.name: getattr(params, field.name) for field in fields(params)}
        if isinstance(params.dtype, _Carrier):
            options.update(params.dtype.options)
            values["dtype"] = params.dtype.dtype
        if not options and not isinstance(params.dtype, _Carrier):
            return params
        sparse = _SparseSamplingParams(**values)
        sparse.sparsekv = options
        return sparse


def sparse_gen(
    name: str | None = None, *args: Any, sparsekv: Mapping[str, Any], **kwargs: Any
) -> SglGen:
    """`sgl.gen` with request options of its own.

    Args:
        name: as for `sgl.gen`.
        args: as for `sgl.gen`.
        sparsekv: request options.
        kwargs: as for `sgl.gen`; `choices` is not among them, as choosing only prefills.

    Raises:
        ValueError: an option is unknown, or `choices` is given.
    """
    if kwargs.get("choices"):
        raise ValueError("choices must be left to sgl.gen: choosing prefills and decodes nothing")
    expression = sgl.gen(name, *args, **kwargs)
    params = expression.sampling_params
    params.dtype = _Carrier(_known(sparsekv), params.dtype)
    return expression


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    for option in options:
        if option not in REQUEST_FIELDS:
            raise ValueError(f"option must be one of {', '.join(REQUEST_FIELDS)}, got {option!r}")
    return dict(options)

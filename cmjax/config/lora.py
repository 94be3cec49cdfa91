"""Reads the section `lora`: an adapter that is trained in place of the network's parameters."""

from cmjax.config.fields import Fields
from cmjax.training.lora import Lora


def read_lora(fields: Fields) -> Lora | None:
    """Reads the adapter of a configuration; None where the section is absent, or its rank is 0."""
    if not fields.has("lora"):
        return None
    section = fields.section("lora")
    rank = section.integer("rank", at_least=0, at_most=4096)
    alpha, targets = section.number("alpha", above=0), section.texts("targets")
    if not rank:
        return None
    if not targets:
        raise section.error("targets", 'must name layers, as ("to_q", "to_k", "to_v", "to_out.0")')
    if fields.section("net").text("name") != "conditional_unet":
        raise section.error("rank", "an adapter is of a network of prompts: needs config.net.name=conditional_unet")
    if not fields.path("init_from"):
        raise section.error("rank", "an adapter changes weights that are there: name them by config.init_from")
    return Lora(rank, alpha, targets)

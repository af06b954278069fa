"""What can be refused before anything is written: a run that is refused leaves its folder as it was."""

from __future__ import annotations

from roma_ds.checkpoint.blueprint import Blueprint, blueprint, check_checkpoint
from roma_ds.checkpoint.loading import load_config, load_tokenizer
from roma_ds.config import RunConfig, resolve_deepspeed
from roma_ds.data.learned import refuse_useless
from roma_ds.data.store import data_inputs
from roma_ds.embed.encoder_files import check_encoder, embedding_width
from roma_ds.embed.stage import embed_inputs
from roma_ds.families import Family, has_routers
from roma_ds.index.stage import check_index
from roma_ds.pipeline.data import chat_of
from roma_ds.pipeline.folders import Folders
from roma_ds.pipeline.held_model import EVALUATED, HeldModel
from roma_ds.pipeline.machine_support import check_machine
from roma_ds.training.loop import check_batches


def accept(run: RunConfig, whole: Blueprint, world_size: int, embeds: bool, indexes: bool = True) -> None:
    """Raises a RomaError where model and settings do not go together, or what a stage needs is not there.

    whole: of the run's model. embeds: whether embeddings are to be made; indexes: whether neighbours are.
    """
    whole.layout.choose(run.roma.layers)
    refuse_useless(run)
    check_batches(run, world_size)
    accept_family(run, whole.layout.family)
    if embeds:
        check_encoder(run.embed)
    if indexes:
        check_index(run, world_size, embedding_width(run.embed), None)


def accept_family(run: RunConfig, family: Family) -> None:
    """Raises UserError where a run asks for parts of a model that can only be run whole."""
    if run.train.prefix_cache == "on" or run.collect.engine == "stream":
        family.require_parts()


def must_embed(run: RunConfig, folders: Folders) -> bool:
    """Whether the embeddings of the run's data are still to be made.

    Looks at records and local data files; raises UserError where one of these is missing.
    """
    data, embed = folders.record("data"), folders.record("embed")
    if data.why_stale(data_inputs(run, chat_of(run, folders))) is not None:
        return True
    return embed.why_stale(embed_inputs(run, data.read()["fingerprint"])) is not None


def accept_data(run: RunConfig, held: HeldModel, indexes: bool) -> None:
    """What shows once the data are there: raises UserError where they are too few for the index, or where a
    token of theirs has no row in the model's embedding. Local work.
    """
    if indexes:
        samples = int(held.folders.record("data").read()["extra"]["training"])
        check_index(run, held.world.size, embedding_width(run.embed), samples)
    if held.has_more_tokens:
        for name in ("samples.parquet", EVALUATED):
            held.prompts(name)


def accept_unread(run: RunConfig, world_size: int, goal: str, embeds: bool, indexes: bool) -> None:
    """As `accept` where neither machine nor checkpoint were looked at yet. Weights are not read.

    goal: the last stage; a model without routers can be evaluated.
    """
    load_tokenizer(run.model)
    if goal == "eval" and not has_routers(load_config(run.model)):
        return
    check_machine(resolve_deepspeed(run, world_size))
    check_checkpoint(run.model)
    accept(run, blueprint(run.model), world_size, embeds, indexes)

"""The text-embedding model E, through sentence-transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.config import EmbedConfig
from roma_ds.config.spelling import did_you_mean
from roma_ds.embed.encoder_files import check_encoder, location, needs_code, not_found
from roma_ds.errors import EnvironmentFault, RomaError, UserError, full_disk, out_of_memory
from roma_ds.progress import Progress

_AT_ONCE = 1000
"""Texts that are encoded into tokens together."""


@dataclass(frozen=True)
class Reading:
    """What the encoder reads of n texts."""

    lengths: NDArray[np.int64]
    """[n], tokens of the whole text with prompt and special tokens; 0 where the encoder counts none."""
    digests: tuple[bytes, ...]
    """[n], equal where the encoder reads the same tokens, and so must give the same vector."""


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder."""

    name: str
    """embed.model."""
    model: Any
    """The SentenceTransformer."""
    tokenizer: Any
    """Of transformers; None for an encoder of another kind, which cuts nothing."""
    prompt: str
    """Put before each text."""
    limit: int | None
    """Tokens that it reads of a text."""
    positions: int | None
    """Tokens that it could read."""
    notes: tuple[str, ...]
    """What its user should know."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        found: torch.dtype | None = self.model.dtype
        return found or torch.float32

    def read(self, texts: Sequence[str]) -> Reading:
        """What it reads of each text; nothing is embedded."""
        lengths: list[int] = []
        digests: list[bytes] = []
        for start in range(0, len(texts), _AT_ONCE):
            chunk = [self.prompt + text for text in texts[start : start + _AT_ONCE]]
            if self.tokenizer is None:
                lengths += [0] * len(chunk)
                digests += [_digest(text.encode("utf-8", "surrogatepass")) for text in chunk]
                continue
            tokens = self._tokens(chunk, truncation=False)
            counts = [len(ids) for ids in tokens]
            cut = [place for place, count in enumerate(counts) if self.is_cut(count)]
            if cut:
                short = self._tokens([chunk[place] for place in cut], truncation=True, max_length=self.limit)
                for place, ids in zip(cut, short, strict=True):
                    tokens[place] = ids
            lengths += counts
            digests += [_digest(np.asarray(ids, np.int64).tobytes()) for ids in tokens]
        return Reading(np.array(lengths, np.int64), tuple(digests))

    def is_cut(self, length: int) -> bool:
        """Whether a text of that many tokens loses its end."""
        return self.limit is not None and length > self.limit

    def _tokens(self, texts: list[str], **settings: Any) -> list[list[int]]:
        encoded = self.tokenizer(texts, verbose=False, return_attention_mask=False, **settings)
        return list(encoded["input_ids"])

    def embed(
        self, texts: Sequence[str], batch_size: int, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """float32 [texts, dim], L2-normalised in float32 whatever the encoder's own type.

        Raises UserError where the encoder fails on a text.
        """
        parts = []
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            try:
                vectors = self.model.encode(
                    batch,
                    prompt=self.prompt if self.prompt or self.model.default_prompt_name else None,
                    batch_size=batch_size,
                    convert_to_tensor=True,
                    show_progress_bar=False,
                )
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise self._failed(batch, error) from error
            unit = torch.nn.functional.normalize(vectors.float(), p=2, dim=1)
            parts.append(unit.cpu().numpy())
            if progress is not None:
                progress.advance(len(batch))
        width = int(self.model.get_embedding_dimension())
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)

    def _failed(self, batch: Sequence[str], error: Exception) -> Exception:
        if out_of_memory(error) or isinstance(error, RomaError):
            return error
        longest = int(self.read(batch).lengths.max())
        length = f" of up to {min(longest, self.limit or longest)} tokens" if longest else ""
        half = "embed.dtype=float32, " if self.dtype != torch.float32 else ""
        return UserError(
            f"embed.model: '{self.name}' fails on texts{length}: {_first_line(error)}",
            f"try {half}a smaller embed.max_tokens, or choose another embed.model",
        )


def load_encoder(config: EmbedConfig, device: torch.device) -> Encoder:
    """The model of `config`. Raises UserError where it is not there, not whole, or cannot do as asked."""
    check_encoder(config)
    model = _loaded(config, device)
    tokenizer = _tokenizer(config, model)
    prompt = _prompt(config, model)
    notes = []
    # Only modules that modules.json names have a record of their arguments.
    if not model.module_kwargs:
        pooling = " and ".join(str(getattr(module, "pooling_mode", "its own")) for module in list(model)[-1:])
        notes.append(
            f"{config.model} has no modules.json: its tokens become a vector by {pooling} pooling, "
            "a guess of sentence-transformers"
        )
    positions = _position_table(model)
    limit: int | None = None
    if tokenizer is not None:
        limit, more = _limit(config, model, tokenizer, positions)
        notes += more
    elif config.max_tokens is not None:
        raise UserError(
            f"embed.max_tokens: '{config.model}' has no tokenizer that could be given a length",
            "leave embed.max_tokens out",
        )
    reach = positions or getattr(model.config, "max_position_embeddings", None)
    reach = reach if isinstance(reach, int) and reach > 0 else None
    return Encoder(config.model, model, tokenizer, prompt, limit, reach, tuple(notes))


def _loaded(config: EmbedConfig, device: torch.device) -> Any:
    from sentence_transformers import SentenceTransformer

    place = location(config.model)
    dtype = getattr(torch, config.dtype) if config.dtype else None
    try:
        model = SentenceTransformer(
            place,
            device=str(device),
            trust_remote_code=config.trust_remote_code,
            model_kwargs={"dtype": dtype} if dtype else None,
        )
    except ImportError as error:
        raise EnvironmentFault(
            f"embed.model: '{config.model}' needs a package that is not installed: {_first_line(error)}",
            "install what is named there, or choose another embed.model",
        ) from error
    except Exception as error:  # of whichever library the model's files name
        if out_of_memory(error) or full_disk(error) or isinstance(error, RomaError):
            raise
        if "trust_remote_code" in str(error) and not config.trust_remote_code:
            raise needs_code(config, _first_line(error)) from error
        here = Path(place).exists()
        where = "cannot be loaded" if here else "is no folder here and was not found on the hub"
        raise not_found(config, f"{where}: {_first_line(error)}") from error
    if dtype:
        for module in list(model)[1:]:
            module.to(dtype)
    return model


def _tokenizer(config: EmbedConfig, model: Any) -> Any:
    from transformers import PreTrainedTokenizerBase

    tokenizer = getattr(model, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise not_found(config, "has no tokenizer files, or a vocabulary without a word")
    return tokenizer


def _prompt(config: EmbedConfig, model: Any) -> str:
    prompts = {name: text or "" for name, text in model.prompts.items()}
    name = config.prompt or model.default_prompt_name
    if name is None:
        return ""
    if not any(prompts.values()):
        raise UserError(
            f"embed.prompt: '{config.model}' has no prompts, so none of the name {name!r}",
            "leave embed.prompt out",
        )
    if name not in prompts:
        raise UserError(
            f"embed.prompt: '{config.model}' has no prompt {name!r}{did_you_mean(name, prompts)}",
            f"use one of {', '.join(sorted(prompts))}, or leave embed.prompt out",
        )
    return prompts[name]


def _limit(
    config: EmbedConfig, model: Any, tokenizer: Any, positions: int | None
) -> tuple[int | None, list[str]]:
    """Tokens that are read of a text, None for any number, set in the model; and what to say about it."""
    asked, own = config.max_tokens, model.max_seq_length
    least = tokenizer.num_special_tokens_to_add() + 1
    if asked is not None and asked < least:
        raise UserError(
            f"embed.max_tokens={asked} leaves no room for a text: {least - 1} are '{config.model}'s own",
            f"set embed.max_tokens to {least} or more",
        )
    if asked is not None and positions is not None and asked > positions:
        raise UserError(
            f"embed.max_tokens={asked}: '{config.model}' has {positions} positions and reads no longer text",
            f"set embed.max_tokens={positions} or less, or choose an embed.model that reads longer texts",
        )
    notes = []
    limit = asked or own
    if limit is not None and positions is not None and limit > positions:
        notes.append(
            f"{config.model} asks for {_count(limit)} tokens of a text but has {positions} positions: "
            f"texts are cut at {positions}"
        )
        limit = positions
    made_for = getattr(model.config, "max_position_embeddings", None)
    if asked is not None and positions is None and isinstance(made_for, int) and 0 < made_for < asked:
        notes.append(
            f"embed.max_tokens={asked} is more than the {made_for} tokens {config.model} was made for"
        )
    if limit != own:
        model.max_seq_length = limit
    # What tokenizers of transformers say where nobody set a length.
    return (None if limit is None or limit > 10**9 else int(limit)), notes


def _count(limit: float) -> str:
    return "any number of" if limit > 10**9 else str(limit)


def _position_table(model: Any) -> int | None:
    """Rows of a table of learned positions that a text can use; None for other encoders, which go on."""
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if (
            isinstance(module, torch.nn.Embedding)
            and "vision" not in path
            and name
            in (
                "position_embeddings",
                "position_embedding",
                "embed_positions",
                "wpe",
            )
        ):
            # Some count from behind the padding token, others keep rows that no position uses.
            before = getattr(module, "offset", None)
            if before is None:
                before = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - int(before)
    return None


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

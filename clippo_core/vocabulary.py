"""The SentencePiece vocabulary of the baselines, which read text as tokens, as CLIP does."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import sentencepiece
from jaxtyping import Int, Int32

from clippo_core.errors import ConfigError, SampleError
from clippo_core.rendering import TextRasters

END_ID, UNKNOWN_ID = 0, 1


@dataclass(frozen=True, eq=False)
class TokenTexts:
    """A batch of texts as token numbers, all of the greatest length allowed.

    Attributes:
        ids: token numbers of each text, then end tokens up to the full length.
        vocabulary_sha256: digest of the vocabulary that the numbers belong to.
    """

    ids: Int32[np.ndarray, "text token"]
    vocabulary_sha256: str

    def __len__(self) -> int:
        return len(self.ids)

    def content(self, text: int) -> bytes:
        """Return the tokens of one text as bytes: the same for texts that have the same tokens."""
        return self.ids[text].tobytes()

    def take(self, texts: Int[np.ndarray, " chosen"]) -> TokenTexts:
        """Return the chosen texts, in the order given."""
        return TokenTexts(self.ids[texts], self.vocabulary_sha256)

    @staticmethod
    def concatenate(batches: Sequence[TokenTexts]) -> TokenTexts:
        """Return several batches as one.

        Raises:
            ConfigError: if they come from different vocabularies.
        """
        if len({batch.vocabulary_sha256 for batch in batches}) != 1:
            raise ConfigError("texts of different vocabularies cannot form one batch")
        ids = np.concatenate([batch.ids for batch in batches])
        return TokenTexts(ids, batches[0].vocabulary_sha256)


#: A batch of texts in the form that a model reads: drawn, or as tokens.
PreparedTexts = TextRasters | TokenTexts


def concatenate_texts(batches: Sequence[PreparedTexts]) -> PreparedTexts:
    """Return several batches of prepared texts as one.

    Raises:
        ClippoError: if they were prepared in different ways.
    """
    drawn = [batch for batch in batches if isinstance(batch, TextRasters)]
    tokens = [batch for batch in batches if isinstance(batch, TokenTexts)]
    if drawn and tokens:
        raise ConfigError("rendered texts and tokens cannot form one batch")
    return TextRasters.concatenate(drawn) if drawn else TokenTexts.concatenate(tokens)


class Vocabulary:
    """A trained SentencePiece model, which turns texts into token numbers."""

    def __init__(self, model: bytes):
        """Load a model that `train_vocabulary` made.

        Raises:
            ConfigError: if it is none.
        """
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"these {len(model)} bytes are no vocabulary: {error}") from None

    @property
    def size(self) -> int:
        """Number of tokens, both special ones included."""
        return self._processor.GetPieceSize()

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text without the end, for `sequence_lengths`."""
        return len(self._processor.EncodeAsIds(text))

    def encode(self, texts: Sequence[str | bytes], *, max_tokens: int) -> TokenTexts:
        """Return token numbers of texts, cut to `max_tokens`, the end token included.

        Bytes that are not UTF-8 and lone surrogates are replaced, as the renderer does. The last
        token is an end always, as big_vision's tokenizer has it (`eos="sticky"`, padding with
        ends).
        """
        ids = np.full((len(texts), max_tokens), END_ID, np.int32)
        for row, found in zip(
            ids, self._processor.EncodeAsIds(list(map(_decoded, texts))), strict=True
        ):
            kept = found[: max_tokens - 1]
            row[: len(kept)] = kept
        return TokenTexts(ids, self.sha256)


def _decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    return text.decode("utf-8", "replace")


def train_vocabulary(
    texts: Iterable[str], *, size: int = 32_000, max_texts: int = 1_000_000, seed: int = 0
) -> bytes:
    """Return a unigram vocabulary trained on texts, as the paper's CLIP* has of 32,000 tokens.

    Letters are folded to lower case, since CLIPPO's renderer draws them so.

    Args:
        texts: the corpus; more than `max_texts` are sampled.
        size: largest number of tokens; a small corpus yields fewer.
        max_texts: number of texts to train on.
        seed: seed of the sample.

    Returns:
        A serialized SentencePiece model.

    Raises:
        SampleError: if there is no text.
    """
    written = io.BytesIO()
    try:
        sentencepiece.set_random_generator_seed(seed)
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(texts),
            model_writer=written,
            vocab_size=size,
            model_type="unigram",
            hard_vocab_limit=False,
            input_sentence_size=max_texts,
            shuffle_input_sentence=True,
            normalization_rule_name="nmt_nfkc_cf",
            byte_fallback=True,
            # The result depends on how the corpus is cut into threads' parts.
            num_threads=1,
            pad_id=-1,
            eos_id=END_ID,
            unk_id=UNKNOWN_ID,
            bos_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise SampleError(f"no vocabulary of {size} tokens comes of these texts: {error}") from None
    return written.getvalue()

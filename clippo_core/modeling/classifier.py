"""A model with a head of classes, or of a score, on its pooled features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from clippo_core.config import ClassifierConfig, ClippoConfig
from clippo_core.errors import ConfigError
from clippo_core.modeling.baselines import Baseline
from clippo_core.modeling.clippo import Clippo
from clippo_core.modeling.layers import Dense, gelu, lecun_normal_
from clippo_core.modeling.pair_model import DeviceTexts, PairModel
from clippo_core.rendering import GlyphTable
from clippo_core.vocabulary import PreparedTexts, Vocabulary

#: Beginning of the names of the head's parameters in a `Classifier`.
HEAD_PREFIX = "classifier."


class ClassifierHead(nn.Module):
    """A head from pooled features to outputs: one dense layer, or two around a GELU (tanh form).

    The last layer starts at 0, so that training starts from the same outputs for every sample:
    all classes alike; of answers to questions, each with probability 1 / answers.
    """

    def __init__(self, width: int, config: ClassifierConfig):
        super().__init__()
        hidden = config.hidden_dim
        self.hidden = None if hidden is None else Dense(width, hidden)
        if self.hidden is not None:
            lecun_normal_(self.hidden.kernel.data, fan_in=width)
        self.output = Dense(width if hidden is None else hidden, config.num_outputs)
        nn.init.zeros_(self.output.kernel)
        if config.task == "vqa":
            nn.init.constant_(self.output.bias, -math.log(config.num_outputs - 1))

    def forward(self, features: Float[Tensor, "sample width"]) -> Float[Tensor, "sample output"]:
        if self.hidden is not None:
            features = gelu(self.hidden(features))
        return self.output(features)


class Classifier(PairModel):
    """A fine-tuned model: the features before the embedding head go through a head of its own.

    The embedding head and the logit scale stay as they were, and take no part.

    Attributes:
        classifier_config: the head, and what its outputs mean.
        classifier: the head.
    """

    classifier_config: ClassifierConfig
    classifier: ClassifierHead

    def _add_head(self, classifier: ClassifierConfig, *, unused: Iterable[nn.Parameter]) -> None:
        """Add a fresh head; the `unused` parameters stay as they are."""
        self.classifier_config = classifier
        self.classifier = ClassifierHead(self.config.vit.width, classifier)
        of_logits = [p for p in (self.log_logit_scale, self.logit_bias) if p is not None]
        for parameter in (*unused, *self.encoder.head.parameters(), *of_logits):
            parameter.requires_grad = False

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - other inputs and outputs
        self,
        images: UInt8[Tensor, "image height_px width_px 3"],
        texts: PreparedTexts | DeviceTexts,
        left_texts: PreparedTexts | DeviceTexts | None = None,  # noqa: ARG002 - as others have it
        kept_patches: Int64[Tensor, "image kept"] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "sample output"]:
        """Return the outputs for pictures where there are some, else for texts.

        Raises:
            ClippoError: if the texts were prepared otherwise than the model's.
        """
        if len(images):
            return self.classifier(self.encoder.features(self.encoder.whole(images)))
        return self.classifier(self.text_features(texts))

    def outputs_of_images(
        self, canvases: UInt8[np.ndarray, "image canvas_px canvas_px 3"], *, batch_size: int = 256
    ) -> Float32[np.ndarray, "image output"]:
        """Return outputs (logits, or scores) for pictures that are on the canvas already."""
        nothing = self.renderer.render_batch([])

        def outputs(batch: slice) -> Tensor:
            return self(torch.from_numpy(canvases[batch]).to(self.device), nothing)

        return self._outputs(outputs, len(canvases), batch_size)

    def outputs_of_texts(
        self, texts: Sequence[str | bytes] | PreparedTexts, *, batch_size: int = 256
    ) -> Float32[np.ndarray, "text output"]:
        """Return outputs for texts: logits, or scores in the training set's unit.

        Args:
            texts: strings, UTF-8 bytes, or prepared texts.
            batch_size: number of texts that are encoded at a time.

        Raises:
            ClippoError: if prepared texts were prepared otherwise than the model's.
        """
        prepared = self._prepared(texts)
        size, every = self.config.render.image_size_px, np.arange(len(prepared))
        no_images = torch.empty((0, size, size, 3), dtype=torch.uint8)

        def outputs(batch: slice) -> Tensor:
            return self(no_images, prepared.take(every[batch]))

        return self._outputs(outputs, len(prepared), batch_size)

    def _outputs(
        self, of: Callable[[slice], Tensor], count: int, batch_size: int
    ) -> Float32[np.ndarray, "sample output"]:
        config = self.classifier_config
        found = self._in_batches(of, count, batch_size, width=config.num_outputs)
        if config.is_regression:
            found = found * np.float32(config.score_deviation) + np.float32(config.score_mean)
        return found


class ClippoClassifier(Classifier, Clippo):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A CLIPPO, fine-tuned on texts, or on pictures with questions drawn on them."""

    def __init__(
        self,
        config: ClippoConfig,
        classifier: ClassifierConfig,
        *,
        font: GlyphTable | None = None,
    ):
        """Make a model with fresh weights.

        Args:
            config: settings of the encoder.
            classifier: the head, and what its outputs mean.
            font: see `PairModel`.

        Raises:
            ConfigError: if the config names a baseline.
            RenderError: see `PairModel`.
        """
        super().__init__(config, font=font)
        self._add_head(classifier, unused=())


class BaselineClassifier(Classifier, Baseline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A CLIP* or 1T-CLIP, fine-tuned on texts. The image tower stays as it was."""

    def __init__(
        self,
        config: ClippoConfig,
        vocabulary: Vocabulary | None,
        classifier: ClassifierConfig,
        *,
        font: GlyphTable | None = None,
    ):
        """Make a model with fresh weights.

        Args:
            config: settings of the towers.
            vocabulary: see `Baseline`.
            classifier: the head, and what its outputs mean.
            font: see `PairModel`.

        Raises:
            ConfigError: see `Baseline`; or if it is to answer questions about pictures, which are
                drawn on them.
            RenderError: see `PairModel`.
        """
        if classifier.task == "vqa":
            raise ConfigError(
                f"text_input={config.text_input}: vqa draws questions on pictures, and takes a "
                "model that reads pixels"
            )
        super().__init__(config, vocabulary, font=font)
        encoder = self.encoder
        of_pictures = (
            (*encoder.patch_embedding.parameters(), encoder.position_embedding)
            if self.text_encoder is None
            else encoder.parameters()
        )
        self._add_head(classifier, unused=(*of_pictures, *self.text_head.parameters()))

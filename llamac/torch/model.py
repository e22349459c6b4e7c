"""An artifact as a model of transformers: `generate()`, pipelines and assisted generation over llamac's code.

model = LlamacModel.from_artifact("model.llamac")
model.generate(**tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=20)
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llamac.errors import LlamacError
from llamac.runtime.loader import load
from llamac.runtime.model import Model

from .cache import LlamacCache
from .columns import Bools, check_positions, real_columns
from .config import LlamacConfig, config_of, generation_config_of

SEQUENCES = 8
"""Full contexts, of rows and beams, that the cache has room for unless told otherwise. Untouched pages are free."""

_NOT_KEPT = "an artifact keeps no intermediate values"


class LlamacModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A loaded artifact behind the interface of a transformers causal language model. It has no torch parameters.

    artifact: the `llamac` model, whose tokenizer and manifest can be read there. Inputs and outputs are torch tensors
    on the CPU, whatever device the artifact runs on. Close it, or use it as a context manager.
    """

    config_class = LlamacConfig
    main_input_name = "input_ids"

    def __init__(self, config: LlamacConfig, artifact: Model) -> None:
        super().__init__(config)
        self.artifact = artifact
        self.generation_config = generation_config_of(artifact)
        self.eval()

    @classmethod
    def from_artifact(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        device: str = "auto",
        context: int | None = None,
        sequences: int = SEQUENCES,
        **options: Any,
    ) -> LlamacModel:
        """Load the artifact at `path`. **This runs its code.** Arguments and errors are those of `llamac.load`.

        sequences: how many rows and beams of the full context the cache has room for (LLC0808 when there are more).
        """
        return cls.from_loaded(
            load(path, threads=threads, device=device, context=context, sequences=sequences, **options)
        )

    @classmethod
    def from_loaded(cls, artifact: Model) -> LlamacModel:
        """The same for an artifact that `llamac.load` has loaded; closing one closes the other."""
        return cls(config_of(artifact), artifact)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> NoReturn:
        """LLC0956: an artifact is one file, which `from_artifact` loads."""
        hint = "LlamacModel.from_artifact(path); `llamac compile` makes an artifact of a checkpoint"
        raise LlamacError("LLC0956", "from_pretrained", "a LlamacModel comes from an artifact", hint)

    def save_pretrained(self, *arguments: Any, **options: Any) -> NoReturn:
        """LLC0956: the artifact is the saved form."""
        raise LlamacError("LLC0956", "save_pretrained", "the artifact is the saved form", "copy the file")

    def __enter__(self) -> LlamacModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the artifact; caches made with it cannot be used afterwards."""
        self.artifact.close()

    @property
    def device(self) -> torch.device:
        """Where inputs and outputs live."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return torch.float32

    def to(self, *arguments: Any, **options: Any) -> LlamacModel:
        """Itself; LLC0956 for another device than the CPU or another dtype: an artifact is compiled for both."""
        device, dtype, *_ = torch._C._nn._parse_to(*arguments, **options)
        if (device is not None and device.type != "cpu") or dtype not in (None, torch.float32):
            hint = "choose the device in from_artifact(device=...), the number format when compiling"
            raise LlamacError("LLC0956", "to", "an artifact cannot be moved or converted", hint)
        return self

    def train(self, mode: bool = True) -> LlamacModel:
        """Itself in evaluation mode; LLC0956 for training: compiled code has no gradients."""
        if mode:
            raise LlamacError(
                "LLC0956", "train", "an artifact has no gradients", "train the torch module, then compile"
            )
        super().train(False)
        return self

    def new_cache(self) -> LlamacCache:
        """An empty past for one batch."""
        return LlamacCache(self.artifact.session)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *rest: Any, **options: Any
    ) -> None:
        wanted = generation_config.cache_implementation
        if wanted not in (None, "dynamic"):
            reason = f"cache_implementation='{wanted}': keys and values lie in the artifact's own pages"
            raise LlamacError("LLC0956", "generate", reason, "leave cache_implementation out")
        given = model_kwargs.get("past_key_values")
        if given is not None:
            self._check_cache(given)
            given._is_user_defined = True
        elif generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_cache()

    def _check_cache(self, cache: object) -> None:
        if not isinstance(cache, LlamacCache) or cache.session is not self.artifact.session:
            what = "one of another model" if isinstance(cache, LlamacCache) else f"a {type(cache).__name__}"
            reason = f"the past is {what}"
            raise LlamacError(
                "LLC0956", "past_key_values", reason, "pass what new_cache() or this model's call returned"
            )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: LlamacCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [batch, columns, vocabulary] of `input_ids` [batch, columns], f32, after the past.

        attention_mask [batch, past + columns] says which columns hold tokens: padding on either side, which is not
        computed and gives logits of zero. position_ids must be what the mask implies. use_cache: return the past, on by
        default. logits_to_keep: how many last columns get logits, or which (0: all). labels [batch, columns]: also the
        loss, -100 where there is none. cache_position is implied by the past.

        LLC0956 for anything that compiled code does not do; errors of the cache and of ids are the runtime's.
        """
        _refuse("inputs_embeds", inputs_embeds, "compiled code begins with token ids")
        _refuse("output_attentions", output_attentions, _NOT_KEPT)
        _refuse("output_hidden_states", output_hidden_states, _NOT_KEPT)
        ids = _checked_ids(input_ids)
        keeps = use_cache is not False
        if past_key_values is not None:
            self._check_cache(past_key_values)
        past = self.new_cache() if past_key_values is None else past_key_values
        known = past.known_columns(len(ids))
        real = real_columns(attention_mask, known, ids.shape[1])
        check_positions(position_ids, past.lengths or [0] * len(ids), real)
        found = past.append(ids, real, _wanted(ids.shape, logits_to_keep))
        if past_key_values is None and not keeps:
            past.close()
        logits = torch.from_numpy(found)
        loss = None if labels is None else self._loss(logits, labels)
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past if keeps else None)
        return out.to_tuple() if return_dict is False else out

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.shape[:2] != labels.shape:
            reason = f"have the shape {list(labels.shape)}, the logits {list(logits.shape[:2])}"
            raise LlamacError("LLC0956", "labels", reason, "give one label a column, and keep all logits")
        ahead, following = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device)
        return torch.nn.functional.cross_entropy(ahead, following, ignore_index=-100)


def _refuse(name: str, value: object, reason: str) -> None:
    if value is not None and value is not False:
        raise LlamacError("LLC0956", name, reason, "leave it out, or use the torch module")


def _checked_ids(input_ids: torch.Tensor | None) -> NDArray[np.int64]:
    if input_ids is None or input_ids.ndim != 2 or not input_ids.numel() or input_ids.is_floating_point():
        found = "nothing" if input_ids is None else f"{input_ids.dtype} {list(input_ids.shape)}"
        reason = f"expected token ids [batch, columns], got {found}"
        raise LlamacError("LLC0956", "input_ids", reason, "pass what a tokenizer returns with return_tensors='pt'")
    ids: NDArray[np.int64] = input_ids.detach().cpu().numpy().astype(np.int64)
    return ids


def _wanted(shape: tuple[int, ...], keep: int | torch.Tensor) -> Bools:
    """Which columns get logits, the same in every row."""
    wanted = np.zeros(shape, bool)
    if isinstance(keep, torch.Tensor):
        indices = keep.detach().cpu().numpy()
        if indices.ndim != 1 or (np.diff(indices) <= 0).any() or not ((indices >= 0) & (indices < shape[1])).all():
            reason = f"{indices.tolist()} of {shape[1]} columns"
            raise LlamacError("LLC0956", "logits_to_keep", reason, "name columns in order, each once")
        wanted[:, indices] = True
    else:
        if keep < 0:
            raise LlamacError("LLC0956", "logits_to_keep", f"is {keep}", "0 keeps all, n the last n")
        wanted[:, -keep if keep else 0 :] = True
    return wanted

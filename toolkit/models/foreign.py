"""Any decoder of the `transformers` library in the place of the transformer here, for training.

`Foreign` gives it the interface that training needs; adapters, sharding and checkpoints work on modules and need no more. Its
paths begin with `hub.`, so patterns that start with `*` fit both. Documents in a packed row stay apart because most models of
`transformers` read their borders from positions that start again at 0; the few others are given a mask. `wrap` proves it on a
row of five tokens, and refuses a model that keeps them apart in neither way (state-space models, positions of its own).
Dropout, where a family has any, is as the builder left it; what is loaded from a folder has it off.
The engine of this toolkit generates with it too, but without a cache; `model.hub.generate` has its own.
Shapes: B rows, T tokens, K columns in which any row has a chosen position, N chosen positions, V vocabulary.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.models.transformer import attention_mask, document_positions


class Foreign(nn.Module):
    """A `*ForCausalLM` of `transformers`, called as a `Transformer` is.

    >>> model = wrap(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1)))
    >>> model(tokens_BT, documents_BT=documents_BT, where_BT=where_BT).shape
    torch.Size([7, 50257])
    """

    def __init__(self, hub: nn.Module) -> None:
        """Raises ValueError for a model without a language-model head, or one that takes no positions."""
        super().__init__()
        name = type(hub).__name__
        arguments = inspect.signature(hub.forward).parameters
        if "labels" not in arguments or "input_ids" not in arguments:
            raise ValueError(f"{name} has no language-model head: build the ForCausalLM class of its family")
        if "position_ids" not in arguments:
            raise ValueError(f"{name} takes no position_ids, so documents in a packed row would see each other")
        self.hub: Any = hub
        """The model as `transformers` made it."""
        self.training = hub.training
        self.gives_mask = False
        """Whether documents are kept apart by a mask rather than by positions."""
        self._keeps_some = "logits_to_keep" in arguments

    @property
    def config(self) -> Any:
        """The configuration of the hub's class; `max_position_embeddings` and `vocab_size` mean the same as here."""
        return self.hub.config.get_text_config()

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        documents_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: None = None,
        where_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits at every position (B, T, V), or, with `where_BT`, at the N chosen ones (N, V), row after row.

        `documents_BT` numbers the document of each token as for a `Transformer`; it and `positions_BT` exclude each other.
        """
        if cache is not None:
            raise ValueError(f"{type(self.hub).__name__} keeps its own cache: generate with model.hub.generate")
        if documents_BT is not None and positions_BT is not None:
            raise ValueError("positions_BT with documents_BT: transformers finds documents by positions that start at 0 again")
        if positions_BT is None:
            positions_BT = document_positions(tokens_BT, documents_BT)
        options: dict[str, Any] = {"position_ids": positions_BT.expand_as(tokens_BT), "use_cache": False}
        if self.gives_mask and documents_BT is not None:
            like = self.hub.get_input_embeddings().weight
            options["attention_mask"] = attention_mask(tokens_BT.shape[1], documents_BT, start=0, window=None, like=like)
        if where_BT is None:
            return self.hub(input_ids=tokens_BT, **options).logits
        if not self._keeps_some:
            return self.hub(input_ids=tokens_BT, **options).logits[where_BT]
        columns_K = where_BT.any(0).nonzero()[:, 0]
        logits_BKV = self.hub(input_ids=tokens_BT, logits_to_keep=columns_K, **options).logits
        return logits_BKV[where_BT[:, columns_K]]

    def refuse_changed(self) -> None:
        """Raise ValueError, naming the place, for a model whose modules were replaced, such as one with adapters."""
        with torch.device("meta"):
            expected = type(self.hub)(self.hub.config).state_dict().keys()
        strange = sorted(expected ^ self.hub.state_dict().keys())
        if strange:
            raise ValueError(f"the model has been changed at {strange[0]}: merge or remove adapters before save_model")


def is_foreign(model: nn.Module) -> bool:
    """Whether `transformers` made the model; the library is not imported to find out."""
    library = sys.modules.get("transformers")
    return library is not None and isinstance(model, library.PreTrainedModel)


def wrap(hub: nn.Module) -> Foreign:
    """A `Foreign` around the model. Raises ValueError for one that does not keep documents of a packed row apart.

    >>> wrap(transformers.MambaForCausalLM(transformers.MambaConfig()))
    Traceback (most recent call last):
    ValueError: MambaForCausalLM takes no position_ids, ...
    """
    model = Foreign(hub)
    if any(parameter.is_meta for parameter in hub.parameters()):
        return model
    leak = _leak(model)
    if leak and getattr(model.config, "sliding_window", None) is None:  # a mask of ours would take the window's place
        model.gives_mask = True
        leak = _leak(model)
    if leak:
        raise ValueError(
            f"{type(hub).__name__} lets documents of a packed row see each other (logits differ by {leak:.3g}): "
            "it cannot train on packed rows"
        )
    return model


@torch.no_grad()
def _leak(model: Foreign) -> float:
    """By how much the logits of a row's second document differ from those that it has alone; 0 within rounding."""
    device = model.hub.get_input_embeddings().weight.device
    top = model.config.vocab_size - 1
    tokens_1T = torch.tensor([[1, 7, 3, 5, 2]], device=device).clamp(max=top)
    documents_1T = torch.tensor([[0, 0, 1, 1, 1]], device=device)
    training = model.training
    model.eval()
    together = model(tokens_1T, documents_BT=documents_1T)[:, 2:].double()
    alone = model(tokens_1T[:, 2:]).double()
    model.train(training)
    tolerance = 3e-2 if next(model.parameters()).dtype in (torch.bfloat16, torch.float16) else 1e-3
    leak = (together - alone).abs().max()
    return 0.0 if leak <= tolerance * alone.abs().max() else leak.item()


def load_foreign(folder: Path, dtype: torch.dtype, device: torch.device) -> Foreign:
    """A model folder of a family that only `transformers` has; no code from the folder is run.

    Raises ValueError where the library is missing or refuses the folder.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(f"{folder} needs the transformers library: pip install transformers") from None
    try:
        if device.type == "meta":
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                built: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
            return wrap(built)
        hub: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{folder}: transformers cannot build it ({reason})") from error
    return wrap(hub.to(device))

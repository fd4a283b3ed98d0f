"""LoRA: a low-rank product beside a frozen weight.

Source: LoRA: Low-Rank Adaptation of Large Language Models, Hu et al., arXiv:2106.09685, eq. 3; `rslora` is A Rank
Stabilization Scaling Factor for Fine-Tuning with LoRA, Kalajdzievski, arXiv:2312.03732.
Changed: A starts uniform in +-1/sqrt(I), as the authors' code does, where the paper says Gaussian.
Shapes: O output features, I input features, R rank, N tokens.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from toolkit.adapters.api import Params, PeftFormat, Site
from toolkit.values import Range, check

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRA:
    """Adapter that adds `scale * b_OR a_RI` to the weight; starts as the base model, because `b_OR` starts at zero."""

    rank: Annotated[int, Range(1)] = 8
    """Rank R of the update, 1 or more; R (O + I) values are trained a matrix."""
    alpha: Annotated[float, Range(0.0, exclusive_low=True)] = 8.0
    """Strength, above 0: the update is scaled by alpha / rank, or by alpha / sqrt(rank) with `rslora`."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps the size of the update steady when the rank is large."""
    dropout: Annotated[float, Range(0.0, 1.0)] = 0.0
    """Probability, 0 to 1, of zeroing an input feature of the update (not of the base) while training."""

    __post_init__ = check

    peft: ClassVar[PeftFormat]

    @property
    def scale(self) -> float:
        """Factor of the product b_OR a_RI."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def init(self, site: Site, weight_OI: Tensor, shared: Params | None, *, generator: Generator) -> Params:
        """a_RI uniform in +-1/sqrt(I), b_OR zero, in float32."""
        import torch

        num_outputs, num_inputs = site.shape
        bound = 1 / math.sqrt(num_inputs)
        a_RI = torch.empty(self.rank, num_inputs, device=generator.device, dtype=torch.float32)
        b_OR = torch.zeros(num_outputs, self.rank, device=generator.device, dtype=torch.float32)
        return Params(trained={"a_RI": a_RI.uniform_(-bound, bound, generator=generator), "b_OR": b_OR})

    def merge(
        self, site: Site, weight_OI: Tensor, bias_O: Tensor | None, params: Params, shared: Params | None
    ) -> tuple[Tensor, Tensor | None]:
        """W + scale b a, added in the wider of the two dtypes and rounded once to the weight's."""
        import torch

        a_RI, b_OR = params["a_RI"], params["b_OR"]
        wide = torch.promote_types(weight_OI.dtype, a_RI.dtype)
        merged_OI = torch.addmm(weight_OI.to(wide), b_OR.to(wide), a_RI.to(wide), alpha=self.scale)
        return merged_OI.to(weight_OI.dtype), bias_O

    def apply(self, x: Tensor, linear: Callable[[Tensor], Tensor], params: Params, shared: Params | None) -> Tensor:
        """linear(x) + scale (x a^T) b^T, computed in the dtype of x; fused when the base is a plain frozen layer."""
        from toolkit.adapters.low_rank import add_low_rank

        return add_low_rank(x, linear, params["a_RI"], params["b_OR"], scale=self.scale, dropout=self.dropout)


def _peft_fields(methods: Mapping[str, LoRA]) -> dict[str, Any]:
    """PEFT's configuration of these methods by module path; the commonest rank and alpha are the defaults."""
    variants = {method.rslora for method in methods.values()}
    if len(variants) > 1:
        raise ValueError("PEFT's layout has one use_rslora for all modules; these adapters have both: save them apart")
    rank = Counter(method.rank for method in methods.values()).most_common(1)[0][0]
    alpha = Counter(method.alpha for method in methods.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "lora_dropout": max(method.dropout for method in methods.values()),
        "use_rslora": variants.pop(),
        "use_dora": False,
        "bias": "none",
        "lora_bias": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "rank_pattern": {re.escape(p): m.rank for p, m in methods.items() if m.rank != rank},
        "alpha_pattern": {re.escape(p): _whole(m.alpha) for p, m in methods.items() if m.alpha != alpha},
    }


def _from_peft(config: Mapping[str, Any], path: str) -> LoRA:
    """The LoRA of the module at `path` in a PEFT configuration."""
    for name, plain in {"use_dora": False, "bias": "none", "lora_bias": False, "fan_in_fan_out": False}.items():
        if config.get(name, plain) != plain:
            raise ValueError(f"{name}={config[name]!r} in adapter_config.json changes the layer beyond LoRA")
    rank = _by_pattern(config.get("rank_pattern"), path, config.get("r", 8))
    alpha = _by_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
    return LoRA(
        rank=rank,
        alpha=float(alpha),
        rslora=bool(config.get("use_rslora", False)),
        dropout=float(config.get("lora_dropout", 0.0)),
    )


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first regular expression that matches the end of the path, at a dot."""
    matching = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", path))
    return next(matching, default)


def _whole(number: float) -> int | float:
    """PEFT writes alpha as an integer where it is one."""
    return int(number) if number == int(number) else number


LoRA.peft = PeftFormat(
    kind="LORA",
    names={"a_RI": "lora_A.weight", "b_OR": "lora_B.weight"},
    write=_peft_fields,
    read=_from_peft,
)

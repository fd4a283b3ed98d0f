"""The ways in which rotary frequencies are stretched to contexts longer than that of pre-training, as values.

Only the numbers are here, so that a config can be read without torch; the mathematics is in `rotary.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from toolkit.values import Range, check

Stretch = Annotated[float, Range(1.0)]
Positive = Annotated[float, Range(0.0, exclusive_low=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearRope:
    """Every frequency divided by one number (position interpolation).

    Source: Extending context window of large language models via positional interpolation, arXiv:2306.15595, eq. 4.
    """

    factor: Stretch = 1.0
    """Stretch, at least 1."""

    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicRope:
    """A larger base once a row is longer than the model's context (NTK-aware, dynamic), and more so the longer it is.

    All rows of one forward share the base that its longest position asks for. Keys in a cache keep the base of their time.
    Source: YaRN, arXiv:2309.00071, sections 3.1 and 3.3.
    """

    factor: Stretch = 1.0
    """Stretch, at least 1."""

    __post_init__ = check


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Rope:
    """Only slow frequencies divided, with a smooth transition.

    Source: The Llama 3 herd of models, arXiv:2407.21783, section 3.4.3, with the constants of its published configuration.
    """

    factor: Stretch = 8.0
    """Stretch, at least 1."""
    low_frequency_factor: Positive = 1.0
    """Wavelengths above original context / this are divided whole."""
    high_frequency_factor: Positive = 4.0
    """Wavelengths below original context / this are kept; above low_frequency_factor."""
    original_context: Annotated[int, Range(1)] = 8192
    """Context of pre-training, in tokens."""

    def __post_init__(self) -> None:
        check(self)
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"Llama3Rope.high_frequency_factor={self.high_frequency_factor} must be above "
                f"low_frequency_factor={self.low_frequency_factor}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnRope:
    """Slow frequencies divided, fast ones kept, a ramp between them; queries and keys are scaled too.

    Source: YaRN: efficient context window extension of large language models, arXiv:2309.00071, eqs. 17 to 23. `mscale`
    and `mscale_all_dim` are DeepSeek's: the scale is then a quotient.
    """

    factor: Stretch = 1.0
    """Stretch, at least 1."""
    original_context: Annotated[int, Range(1)] = 8192
    """Context of pre-training, in tokens."""
    beta_fast: Positive = 32.0
    """Pairs that turn more often than this within the original context are kept."""
    beta_slow: Positive = 1.0
    """Pairs that turn less often than this are divided whole."""
    attention_factor: Positive | None = None
    """Scale of queries and keys; None takes the paper's 0.1 ln(factor) + 1, or the quotient of the two mscales."""
    mscale: Annotated[float, Range(0.0)] = 0.0
    """Weight of ln(factor) in the scale's numerator; 0 for none."""
    mscale_all_dim: Annotated[float, Range(0.0)] = 0.0
    """Weight of ln(factor) in the scale's denominator; 0 for none."""
    truncate: bool = True
    """Round the ends of the ramp to whole channels."""

    __post_init__ = check

    @property
    def scale(self) -> float:
        """What cosine and sine are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _yarn_scale(self.factor, self.mscale) / _yarn_scale(self.factor, self.mscale_all_dim)
        return _yarn_scale(self.factor, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LongRope:
    """A divisor for each frequency: one set up to the original context, another beyond it.

    The longest position of a forward decides for all its rows.
    Source: LongRoPE, arXiv:2402.13753, section 3; the scale is that of Phi-3's published code.
    """

    short_factors: tuple[Positive, ...] = ()
    """Divisors of the frequencies, head_dim / 2 of them, for rows within the original context."""
    long_factors: tuple[Positive, ...] = ()
    """Divisors for longer rows, as many."""
    factor: Stretch = 1.0
    """Stretch, at least 1; only the scale depends on it."""
    original_context: Annotated[int, Range(2)] = 4096
    """Context of pre-training, in tokens."""
    attention_factor: Positive | None = None
    """Scale of queries and keys; None takes sqrt(1 + ln(factor) / ln(original_context))."""

    def __post_init__(self) -> None:
        check(self)
        if len(self.short_factors) != len(self.long_factors):
            raise ValueError(
                f"LongRope: {len(self.short_factors)} short_factors and {len(self.long_factors)} long_factors; "
                "give head_dim / 2 of each"
            )

    @property
    def scale(self) -> float:
        """What cosine and sine are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context)) if self.factor > 1 else 1.0


RopeScaling = LinearRope | DynamicRope | Llama3Rope | YarnRope | LongRope


def _yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

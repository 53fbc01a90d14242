"""How a daemon makes its answers unless a request says otherwise; changeable while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from edge.controller import Aim, Wishes
from edge.exit_policy import DEFAULT_THRESHOLD, threshold_for
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle
from shared.sampling import Sampling


@dataclass(frozen=True)
class Controls:
    """What page, requests, MQTT and flags set.

    Attributes:
        threshold: confidence from which an exit's token is accepted; collaborative mode alone.
            ``None`` is the default one.
        target_agreement: instead of a threshold, the share of tokens that shall equal the full
            model's, by the bundle's measurements on greedy answers; collaborative and auto mode.
        aim: what auto mode is after.
        private: never token ids to the cloud, in no mode; cloud-only mode is then refused.
        max_tokens: longest answer.
    """

    mode: Mode
    threshold: float | None = None
    target_agreement: float | None = None
    aim: Aim = Aim.LATENCY
    private: bool = False
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        assert isinstance(self.mode, Mode)
        assert isinstance(self.aim, Aim)
        for name in ("threshold", "target_agreement"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigurationError(f"{name} {value} is not within [0, 1]")
        if self.max_tokens < 1:
            raise ConfigurationError(f"max_tokens {self.max_tokens} is not at least 1")
        if self.threshold is not None and self.target_agreement is not None:
            raise ConfigurationError("set threshold or target_agreement, not both")
        if self.threshold is not None and self.mode is not Mode.COLLABORATIVE:
            raise ConfigurationError(
                f"{self.mode.value} mode has no use for a threshold: choose the mode collaborative"
            )
        if self.target_agreement is not None and self.mode not in (Mode.COLLABORATIVE, Mode.AUTO):
            raise ConfigurationError(
                f"{self.mode.value} mode has no use for target_agreement: choose the mode "
                "collaborative or auto"
            )
        if self.mode is not Mode.AUTO and self.aim is not Aim.LATENCY:
            raise ConfigurationError("an aim is for the mode auto")
        if self.mode is Mode.CLOUD_ONLY and self.private:
            raise ConfigurationError(
                "cloud-only mode sends the words, which private forbids: choose another mode"
            )

    def changed(self, changes: Mapping[str, Any]) -> Controls:
        """These controls with ``changes`` (values as JSON has them: ``{"mode": "auto"}``).

        What a change makes meaningless goes back to its default: a threshold clears the target and
        the other way round, a new mode clears what it has no use for.

        Raises:
            ConfigurationError: names the key that is unknown, or what is wrong with its value.
        """
        unknown = changes.keys() - asdict(self).keys()
        if unknown:
            raise ConfigurationError(
                f"{min(unknown)!r} is not a control: {', '.join(asdict(self))} are"
            )
        values = {name: _parse(name, value) for name, value in changes.items()}
        mode = values.get("mode", self.mode)
        cleared: dict[str, Any] = {}
        if mode is not Mode.COLLABORATIVE or values.get("target_agreement") is not None:
            cleared["threshold"] = None
        if mode not in (Mode.COLLABORATIVE, Mode.AUTO) or values.get("threshold") is not None:
            cleared["target_agreement"] = None
        if mode is not Mode.AUTO:
            cleared["aim"] = Aim.LATENCY
        return replace(self, **(cleared | values))

    def asked(self, changes: Mapping[str, Any]) -> Controls:
        """These controls as one request wants them, which may make its answer private but not
        undo that all are.

        Raises:
            ConfigurationError: as :meth:`changed`, and for the wish to undo ``private``.
        """
        if self.private and changes.get("private") is False:
            raise ConfigurationError(
                "private cannot be false in a request: this daemon sends no token ids to the cloud"
            )
        return self.changed(changes)

    def as_record(self) -> dict[str, Any]:
        """As JSON has it: what :meth:`changed` takes."""
        return asdict(self) | {"mode": self.mode.value, "aim": self.aim.value}

    def options(
        self, bundle: ModelBundle, sampling: Sampling, max_tokens: int | None = None
    ) -> GenerationOptions:
        """For one generation; ``max_tokens`` bounds it further."""
        limit = self.max_tokens if max_tokens is None else min(self.max_tokens, max_tokens)
        auto = self.mode is Mode.AUTO
        threshold = DEFAULT_THRESHOLD if self.threshold is None else self.threshold
        if self.target_agreement is not None and not auto:
            threshold = threshold_for(bundle.manifest.operating_points, self.target_agreement)
        return GenerationOptions(
            self.mode,
            threshold,
            limit,
            sampling,
            wishes=Wishes(self.aim, self.target_agreement if auto else None, private=self.private),
        )


def _parse(name: str, value: Any) -> Any:
    """``value`` of control ``name``, from JSON."""
    match name:
        case "mode":
            return _member(Mode, name, value)
        case "aim":
            return _member(Aim, name, value)
        case "private" if isinstance(value, bool):
            return value
        case "max_tokens" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "threshold" | "target_agreement" if value is None:
            return None
        case "threshold" | "target_agreement" if isinstance(value, int | float) and not isinstance(
            value, bool
        ):
            try:
                return float(value)
            except OverflowError:
                raise ConfigurationError(f"{name} is not within [0, 1]") from None
    raise ConfigurationError(f"{name} cannot be {value!r}")


def _member(kind: type[Mode] | type[Aim], name: str, value: Any) -> Mode | Aim:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise ConfigurationError(f"{name} cannot be {value!r}: it is one of {known}") from None

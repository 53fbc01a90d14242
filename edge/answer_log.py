"""One log line for every answer that has ended: what it cost, not what it says."""

from __future__ import annotations

import logging
import secrets
from collections import Counter

from edge.generation import Mode
from edge.service import AnswerRecord, EdgeService, Outcome
from shared.logs import about

_LOG = logging.getLogger("tandem.edge.answers")


class AnswerLog:
    """Give :meth:`answered` to :meth:`EdgeService.observe`.

    Args:
        with_text: log the words of prompts and answers too.
    """

    def __init__(self, service: EdgeService, *, with_text: bool = False) -> None:
        self._service, self._with_text = service, with_text

    def answered(self, record: AnswerRecord) -> None:
        """Log an answer that has ended; one that failed is a warning."""
        level = logging.WARNING if record.outcome is Outcome.FAILED else logging.INFO
        if not _LOG.isEnabledFor(level):
            return
        fields = _fields(record)
        if self._with_text:
            engine = self._service.engine
            fields["prompt"] = engine.tokenizer.decode(
                list(record.request.prompt_ids), skip_special_tokens=False
            )
            fields["text"] = record.result.text if record.result else ""
        _LOG.log(level, "answer", extra=about(**fields))


def _fields(record: AnswerRecord) -> dict[str, object]:
    request, result, reason = record.request, record.result, record.finish_reason
    fields: dict[str, object] = {
        "id": secrets.token_hex(6),
        "source": request.source,
        "outcome": record.outcome.value,
        "finish_reason": reason.value if reason else None,
        "prompt_tokens": len(request.prompt_ids),
    }
    if record.error is not None and record.outcome is Outcome.FAILED:
        fields["error"] = type(record.error).__name__  # its text may be anybody's
    if result is None:
        return fields | {"answer_tokens": 0}
    mode = result.options.mode
    return fields | {
        "answer_tokens": len(result.tokens),
        "origins": dict(Counter(token.origin for token in result.tokens)),
        "alone": sum(token.alone for token in result.tokens),
        "seconds": round(result.seconds, 3),
        "first_token_seconds": round(result.first_token_seconds, 3) if result.tokens else None,
        "escalations": result.statistics.escalations,
        "rollbacks": result.statistics.rollbacks,
        "uploaded_bytes": result.uploaded_bytes,
        "downloaded_bytes": result.downloaded_bytes,
        "mode": mode.value,
        "plan": str(result.plan) if mode in (Mode.COLLABORATIVE, Mode.AUTO) else None,
    }

"""Classification of a failed attempt: worth a retry, or a refusal.

No text here repeats a credential.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite

SHOWN = 200
_RETRIED = {408, 409, 425, 429}
_OF_THE_FORM = {400, 415, 422, 501}
_TOO_LONG = re.compile(
    r"context.{0,3}(length|window)|maximum context|(prompt|input) is too long|too many (input )?tokens|reduce the length", re.I
)
_NO_SUCH_MODEL = re.compile(
    r"LLM Provider NOT provided|model_not_found|\b(invalid|unknown|no such) model\b|\bmodel\b[^.]{0,80}\b(does not exist|not found)\b", re.I
)
_NO_CREDIT = re.compile(
    r"insufficient_quota|exceeded your current quota|credit balance|insufficient (credit|balance|funds)"
    r"|budget has been exceeded|budget_exceeded|ExceededBudget|billing.hard.limit|billing_not_active",
    re.I,
)
_NO_KEY = re.compile(
    r"\b(invalid|incorrect|expired|missing|no)[ _]api[ _]?key|\bapi[ _]?key( is| has)? (not valid|not found|invalid|expired|missing)"
    r"|api_key_invalid|organization has been disabled",
    re.I,
)
_KEY_LIKE = re.compile(
    r"\b(?:sk|pk|rk|opk|xai|gsk)[-_][\w*.-]{6,}|\bAIza[\w-]{10,}|(?i:\bbearer)\s+\S+|(?i:api[-_ ]?key)['\"]?\s*[:=]\s*['\"]?[\w*.-]+"
)


@dataclass(eq=False)
class CallFailed(Exception):
    """One attempt failed. ``status`` is HTTP's.

    It is None when no whole answer came, or one that is no chat completion. ``attempts`` is the number of attempts once retries have
    ended.
    """

    reason: str
    status: int | None = None
    retry_after_s: float | None = None
    attempts: int = 1

    @property
    def is_too_long(self) -> bool:
        """True if the request does not fit into the model's context."""
        return self.status == 413 or (self.status in _OF_THE_FORM and _TOO_LONG.search(self.reason) is not None)

    @property
    def is_of_the_form(self) -> bool:
        """True if the server rejects the request's form; a plainer form may help.

        Some servers send 400 for the model or the account, too; these do not count.
        """
        if self.status not in _OF_THE_FORM or self.is_too_long:
            return False
        return not any(words.search(self.reason) for words in (_NO_SUCH_MODEL, _NO_CREDIT, _NO_KEY))

    @property
    def is_worth_a_retry(self) -> bool:
        """True if the same request may succeed later."""
        if self.status is None:
            return True
        # OpenAI reports an empty account as a rate limit
        if self.status == 429 and _NO_CREDIT.search(self.reason):
            return False
        return self.status in _RETRIED or (self.status >= 500 and self.status not in _OF_THE_FORM)

    @property
    def is_for_all(self) -> bool:
        """True if other requests to this model would fail in the same way."""
        return self.is_worth_a_retry or not (self.is_too_long or self.is_of_the_form)

    @property
    def is_of_the_key(self) -> bool:
        """True if the credential is wrong or may not use the model."""
        return self.status in {401, 403} or _NO_KEY.search(self.reason) is not None

    @property
    def is_of_the_account(self) -> bool:
        """True if the account has no credit left."""
        return self.status in {402, 429} or _NO_CREDIT.search(self.reason) is not None

    def __str__(self) -> str:
        return self.reason if self.status is None else f"status {self.status}: {self.reason}"


def scrubbed(text: str, secrets: Iterable[str] = ()) -> str:
    """One short line of ``text`` without ``secrets`` and anything that looks like a key."""
    for secret in secrets:
        text = text.replace(secret, "[key]")
    text = _KEY_LIKE.sub("[key]", " ".join(text.split()))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds of a Retry-After header (a number or a date); None without a readable one."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    return max(0.0, seconds) if isfinite(seconds) else None

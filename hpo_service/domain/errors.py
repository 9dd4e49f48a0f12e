"""Every error a caller can meet, one tree.

HpoError
├── Invalid                 the request breaks a rule of the contract; carries the places
├── MalformedRequest        an address or a header that says nothing
├── MalformedJson           a body that is no JSON, or none of finite numbers and whole characters
├── TooLarge                it would make a trial or a study take more bytes than are kept of one
├── NotFound                no such study, trial or worker
├── Conflict                the thing exists, but not in a state that allows the call
│   ├── StudyExists         another study already has that name
│   ├── StudyStateConflict  the study's state does not allow the call
│   ├── StudySealed         its test set has been opened; nothing may be added
│   ├── LeaseLost           the attempt no longer holds the trial
│   ├── TrialFinished       the trial has its result; it is immutable
│   └── ResultConflict      the trial has another result than the one told
├── Unauthenticated         no key, or none that the record knows
├── Forbidden               the key does not cover the call
├── RateLimited             too many calls; says when to come back
├── InvalidRange            a range of bytes that an artifact does not have
├── PreconditionFailed      If-Match names an older version
└── Unavailable             the database cannot take the call now; try again
    ├── StudyHeld           somebody else holds this study, and no other
    └── DrawFailed          the sampler has not drawn a trial; nothing has changed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Fault(NamedTuple):
    """One broken rule: where (a JSON pointer into the body) and which."""

    pointer: str
    detail: str


class HpoError(Exception):
    """request_id: of the answer by which a client has learned of it."""

    code = "error"
    request_id: str | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Invalid(HpoError):
    code = "invalid"

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{f.pointer or '/'}: {f.detail}" for f in faults))
        self.faults = tuple(faults)


class MalformedRequest(HpoError):
    code = "malformed_request"


class MalformedJson(HpoError):
    code = "malformed_json"


class TooLarge(HpoError):
    code = "too_large"


class NotFound(HpoError):
    code = "not_found"


class Conflict(HpoError):
    code = "conflict"


class StudyExists(Conflict):
    code = "study_exists"


class StudyStateConflict(Conflict):
    code = "study_state"


class StudySealed(Conflict):
    code = "study_sealed"


class LeaseLost(Conflict):
    code = "lease_lost"


class TrialFinished(Conflict):
    code = "trial_finished"


class ResultConflict(Conflict):
    code = "result_conflict"


class Unauthenticated(HpoError):
    code = "unauthenticated"


class Forbidden(HpoError):
    code = "forbidden"


class RateLimited(HpoError):
    code = "rate_limited"

    def __init__(self, detail: str, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class InvalidRange(HpoError):
    code = "invalid_range"


class PreconditionFailed(HpoError):
    code = "precondition_failed"


class Unavailable(HpoError):
    code = "unavailable"


class StudyHeld(Unavailable):
    pass


class DrawFailed(Unavailable):
    pass

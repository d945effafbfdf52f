"""The one error tree. An error carries facts (status, code, type, scope); each wire turns it into its own dialect.

`message` is written for the caller and holds no secret: whoever builds one from a provider's text cleans it first
(`providers.scrub`). Decide by class, status and code, never by searching the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

Scope = Literal["transient", "credential", "request"]
"""transient: try elsewhere, counts against the deployment. credential: our key, bill or config; try elsewhere, the
deployment itself is healthy. request: the call itself is refused; final, no fallback, no health penalty."""


class SwitchyardError(Exception):
    """Anything that may be told to a client.

    status: HTTP status towards the client. code: stable machine code. type: OpenAI's `error.type`.
    param: the field at fault (`messages[0].role`). retry_after: seconds. should_retry: None leaves it to the client.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
        native_code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.should_retry = should_retry
        self.native_code = native_code
        """The provider's own code, where there is one (`context_length_exceeded`): shown to the client in place of
        ours."""


class InternalError(SwitchyardError):
    """A bug of ours. The message names the request id and nothing else."""


# --- the caller's side


class InvalidRequest(SwitchyardError):
    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class UnsupportedFeature(InvalidRequest):
    """No eligible target can do what the call needs; `param` names the field (`messages`, `tools`, ...)."""

    code = "unsupported_parameter"


class Unauthorized(SwitchyardError):
    status = 401
    code = "invalid_api_key"
    type = "invalid_request_error"


class NotAllowed(SwitchyardError):
    status = 403
    code = "not_allowed"
    type = "permission_error"


class ModelNotAllowed(NotAllowed):
    code = "model_not_allowed"


class NotFound(SwitchyardError):
    status = 404
    code = "not_found"
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, model: str, near: Sequence[str] = (), message: str | None = None) -> None:
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        super().__init__(message or f"model '{model}' not found.{hint}", param="model")
        self.model = model
        self.near = tuple(near)


class MethodNotAllowed(SwitchyardError):
    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class TooLarge(SwitchyardError):
    status = 413
    code = "request_too_large"
    type = "invalid_request_error"


class UnsupportedMedia(SwitchyardError):
    status = 415
    code = "unsupported_media_type"
    type = "invalid_request_error"


class LimitReached(SwitchyardError):
    """A limit of the caller's key or team. `limit` is its name, `headers` the `x-ratelimit-*` family."""

    status = 429

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after, should_retry=should_retry)
        self.limit = limit
        self.headers = headers


class RateLimitExceeded(LimitReached):
    """Passes with time: `retry_after` says when."""

    code = "rate_limit_exceeded"
    type = "rate_limit_error"


class QuotaExceeded(LimitReached):
    """Does not pass by trying again."""

    code = "insufficient_quota"
    type = "insufficient_quota"


# --- our own side


class Overloaded(SwitchyardError):
    """The router itself, or the local model's queue, is full."""

    status = 503
    code = "overloaded"
    type = "service_unavailable_error"


class StoreUnavailable(SwitchyardError):
    """The store that holds keys and quotas cannot be asked right now."""

    status = 503
    code = "quota_store"
    type = "service_unavailable_error"


class NoTarget(SwitchyardError):
    """Every target is off, unhealthy or exhausted."""

    status = 503
    code = "no_target"
    type = "service_unavailable_error"


# --- the provider's side


class UpstreamError(SwitchyardError):
    """A provider failed. `upstream_status` is what it answered, None when it did not answer.

    `reason` is the stable word for `x-switchyard-fallback`, metrics and logs.
    """

    status = 502
    code = "provider_error"
    scope: ClassVar[Scope] = "transient"
    reason: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        upstream_status: int | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
        native_code: str | None = None,
    ) -> None:
        super().__init__(
            message, param=param, retry_after=retry_after, should_retry=should_retry, native_code=native_code
        )
        self.upstream_status = upstream_status


class Unreachable(UpstreamError):
    """Refused, no route, name not found, TLS not acceptable: nothing was sent."""

    code = "provider_unreachable"
    reason = "unreachable"


class TimedOut(UpstreamError):
    """A deadline passed: connecting, first content, idle or total. 503 like every failure that another try may cure."""

    status = 503
    code = "provider_timeout"
    reason = "timeout"


class ConnectTimedOut(TimedOut):
    """Connecting took too long: the provider has not got the request."""


class DeadlineExceeded(TimedOut):
    """The caller's own deadline (`x-switchyard-timeout`) passed: final, and no fault of the provider's."""

    status = 504
    code = "deadline_exceeded"
    scope = "request"
    reason = "deadline"


class Broken(UpstreamError):
    """The answer cannot be understood or was cut off."""

    code = "provider_broken"
    reason = "broken"


class Unavailable(UpstreamError):
    """5xx and its relatives."""

    status = 502
    code = "provider_error"
    reason = "unavailable"


class Busy(UpstreamError):
    """The provider says that it is overloaded (503, 529)."""

    status = 503
    code = "provider_overloaded"
    type = "service_unavailable_error"
    reason = "overloaded"


class RateLimited(UpstreamError):
    """The provider's rate limit. Cools the deployment down; not a failure of it. Not 429 towards the caller: that is
    for limits of theirs."""

    status = 503
    code = "provider_rate_limited"
    type = "service_unavailable_error"
    reason = "rate_limited"


class ProviderAuth(UpstreamError):
    """The provider refuses our credential. The caller's key is fine, so it is never told 401 or 403."""

    status = 502
    code = "provider_auth"
    scope = "credential"
    reason = "auth"


class ProviderQuota(UpstreamError):
    """Our account at the provider has no money or no quota left."""

    status = 503
    code = "provider_quota"
    type = "service_unavailable_error"
    scope = "credential"
    reason = "provider_quota"


class ProviderModelNotFound(UpstreamError):
    """The provider does not know the sent model (or not for our account): our config is wrong there, another target
    may serve."""

    status = 502
    code = "provider_model_not_found"
    scope = "credential"
    reason = "model_not_found"


class Refused(UpstreamError):
    """The provider refuses this very request (400, 413, 422): passed on, cleaned; no other target is tried."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"
    scope = "request"
    reason = "refused"


class ContextTooLong(Refused):
    code = "context_length_exceeded"
    reason = "context_length"


class ContentFiltered(Refused):
    code = "content_filter"
    reason = "content_filter"

"""Explains gcloud's errors: the reason in one line, its kind, and what helps.

gcloud says it in many forms: after warnings, over several lines, as JSON, as YAML, as a crash of
its own, or as a page of the server between.

Usage:
  complaint = read(stderr)
  complaint.kind, complaint.line     # Kind.CAPACITY, "There is no more capacity in the zone (...)"
"""

import dataclasses
import enum
import json
import re
from typing import Any

_LONGEST = 300
# The codes of google.rpc.Code, by which operations end.
_CODES = {
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    16: "UNAUTHENTICATED",
}


class Kind(enum.Enum):
    """What a refusal is about."""

    BUSY = enum.auto()
    NETWORK = enum.auto()
    CAPACITY = enum.auto()
    QUOTA = enum.auto()
    PERMISSION = enum.auto()
    EXISTS = enum.auto()
    MISSING = enum.auto()
    USAGE = enum.auto()
    OTHER = enum.auto()


@dataclasses.dataclass(frozen=True)
class Complaint:
    """Attributes:
    kind: what it is about.
    reason: gcloud's own words, in a line.
    hint: what helps, where that is known.
    """

    kind: Kind
    reason: str
    hint: str = ""

    @property
    def passes(self) -> bool:
        """Whether the same call may go well in a while, whatever it asks for."""
        return self.kind in (Kind.BUSY, Kind.NETWORK)

    @property
    def line(self) -> str:
        return f"gcloud: {self.reason}" + (f" ({self.hint})" if self.hint else "")


_ASK_FOR_QUOTA = "the project may not have so many: ask for quota in the console, under IAM, Quotas"
# The first that is found in the words decides.
_KINDS = [
    (Kind.USAGE, r"unrecognized arguments|^argument |^Invalid choice|must be specified", ""),
    (
        Kind.OTHER,
        r"SERVICE_DISABLED|has not been used in project|API \[.*\] not enabled",
        "run `gcloud services enable tpu.googleapis.com`",
    ),
    (
        Kind.PERMISSION,
        r"UNAUTHENTICATED|active account|invalid_grant|[Rr]eauth|refreshing your current auth",
        "run `gcloud auth login`",
    ),
    (
        Kind.OTHER,
        r"constraints/compute\.vmExternalIpAccess|external IP",
        "the project allows no external addresses: --create_flags=--internal-ips and "
        "--ssh_flags=--internal-ip, or --gcloud_track=alpha --ssh_flags=--tunnel-through-iap",
    ),
    (
        Kind.OTHER,
        r"(?s)networks?\b.{0,200}(not found|not exist|invalid)",
        "name a network of the project: --create_flags='--network=NAME --subnetwork=NAME'",
    ),
    (
        Kind.NETWORK,
        r"network connectivity|ConnectionError|Connection (aborted|reset|refused)|[Tt]imed? ?out"
        r"|Failed to (establish|resolve)|Unable to find the server|SSLError|TransportError"
        r"|problem reaching|exited with return code \[255\]|(ssh|kex_exchange).*Connection closed",
        "is the network up, and is port 22 of the workers open to this machine?",
    ),
    (
        Kind.QUOTA,
        r"Quota limit '|PerProjectPer(Zone|Region)|Limit: \d+ in (zone|region)",
        _ASK_FOR_QUOTA,
    ),
    (
        Kind.BUSY,
        r"RATE_LIMIT_EXCEEDED|rateLimitExceeded|[Pp]er ?[Mm]inute|Too Many Requests|UNAVAILABLE"
        r"|DEADLINE_EXCEEDED|ABORTED|INTERNAL\b|[Ii]nternal (server )?error|[Bb]ackend ?[Ee]rror"
        r"|Bad gateway|HTTP(Error)? (5\d\d|429)",
        "",
    ),
    (Kind.QUOTA, r"[Qq]uota", _ASK_FOR_QUOTA),
    (
        Kind.CAPACITY,
        r"RESOURCE_EXHAUSTED|RESOURCE_POOL_EXHAUSTED|[Ss]tockout|capacity|enough resources",
        "the zone has none free now: wait in the queue with --queued, or try another zone",
    ),
    (
        Kind.PERMISSION,
        r"storage\.(objects|buckets)\.",
        "your account may not do this: ask for the role roles/storage.objectUser on the bucket",
    ),
    (
        Kind.PERMISSION,
        r"PERMISSION_DENIED|HTTPError 40[13]|does not have permission|Required '.*' permission"
        r"|actAs",
        "your account may not do this in the project: see `gcloud auth list` and ask for the role "
        "roles/tpu.admin, for a service account roles/iam.serviceAccountUser",
    ),
    (Kind.EXISTS, r"ALREADY_EXISTS|already exists", ""),
    (Kind.MISSING, r"NOT_FOUND|was not found", ""),
]
# What a server between says, which is a page.
_PAGE = re.compile(r"(?s)HttpError accessing <([^>?]*).*?'status': (\d+)}>, content <.*>")
# Where the reason ends and advice or details of the protocol begin.
_ENDS = re.compile(
    r"^\s*(- '?@type|Usage: |To search the help|For detailed information|If you would like to"
    r"|To check gcloud|If you have already logged|This may be due to network)",
    re.MULTILINE,
)


def read(stderr: str) -> Complaint:
    """What a failed call has printed on standard error, understood."""
    words = _words(stderr)
    reason = " ".join(_ENDS.split(words)[0].split()) or "it failed and printed nothing"
    if len(reason) > _LONGEST:
        reason = f"{reason[:_LONGEST]}..."
    for kind, pattern, hint in _KINDS:
        if re.search(pattern, words):
            return Complaint(kind, reason, hint)
    return Complaint(Kind.OTHER, reason)


def of_status(status: dict[str, Any]) -> Complaint:
    """The same of a google.rpc.Status, such as that of a queued resource which has failed."""
    return read(f"ERROR: {json.dumps(status)}")


def _words(stderr: str) -> str:
    """The error without what came before it and without gcloud's name for the command."""
    start = re.search(r"^ERROR: (\(gcloud\.[\w.-]+\) ?)?", stderr, re.MULTILINE)
    if start is None:
        lines = [line for line in stderr.splitlines() if line.strip()]
        said = [line for line in lines if not line.startswith(("WARNING: ", "Updates are "))]
        return (said or lines or [""])[-1].strip()
    words = _PAGE.sub(r"HTTP \2 from \1", stderr[start.end() :].strip())
    if not words.startswith("{"):
        return words
    try:
        content, end = json.JSONDecoder().raw_decode(words)
    except ValueError:
        return words
    # Some nest it once more, as the API's answers do.
    content = content.get("error", content)
    if not isinstance(content, dict):
        return f"{content}"
    code = content.get("status") or _CODES.get(content.get("code", 0), "")
    message = content.get("message") or words[:end]
    return f"{code}: {message}" if code else f"{message}"

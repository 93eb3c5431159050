"""Every form in which gcloud complains gives its reason, what it is about, and what helps."""

import pytest

from launch import gcloud_errors
from launch.gcloud_errors import Kind

# As gcloud 528 prints them, for answers of our own.
NO_CAPACITY = """Create request issued for: [pod]
ERROR: (gcloud.compute.tpus.tpu-vm.create) {
  "code": 8,
  "message": "There is no more capacity in the zone \\"us-x1-a\\"; try another"
}
"""
DENIED = """WARNING: The private SSH key file for gcloud does not exist.
ERROR: (gcloud.compute.tpus.tpu-vm.create) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied
- '@type': type.googleapis.com/google.rpc.ErrorInfo
  reason: IAM_PERMISSION_DENIED
"""
QUOTA = """ERROR: (gcloud.compute.tpus.tpu-vm.create) RESOURCE_EXHAUSTED: Quota limit 'TPUV5' has \
been exceeded. Limit: 0 in zone us-x1-a.
"""
TOO_OFTEN = """ERROR: (gcloud.compute.tpus.tpu-vm.describe) RESOURCE_EXHAUSTED: Quota exceeded for \
quota metric 'Read requests' and limit 'Read requests per minute' of service 'tpu.googleapis.com'
"""
PAGE = """ERROR: (gcloud.compute.tpus.tpu-vm.create) HttpError accessing <http://h/v2/nodes?alt=json>\
: response: <{'server': 'x', 'status': 502}>, content <<html>Bad
gateway</html>>
This may be due to network connectivity issues. Please check your network settings, and the status \
of the service you are trying to reach.
"""
CRASH = """ERROR: gcloud crashed (ConnectionError): HTTPConnectionPool(host='h', port=9): Max \
retries exceeded (Caused by NewConnectionError(': Failed to establish a new connection: \
[Errno 111]'))

If you would like to report this issue, please run the following command:
  gcloud feedback
"""
NO_ACCOUNT = """ERROR: (gcloud.compute.tpus.tpu-vm.describe) You do not currently have an active \
account selected.
Please run:

  $ gcloud auth login

to obtain new credentials.

If you have already logged in with a different account, run:

  $ gcloud config set account ACCOUNT
"""
PROMPT = """API [tpu.googleapis.com] not enabled on project [p]. Would you like to enable and \
retry (this will take a few minutes)? (y/N)?
ERROR: (gcloud.compute.tpus.tpu-vm.create) PERMISSION_DENIED: Cloud TPU API has not been used in \
project p before or it is disabled.
"""
WRONG_FLAGS = """ERROR: (gcloud.compute.tpus.tpu-vm.create) unrecognized arguments:
  --no-such
  --other=3 (did you mean '--zone'?)
  To search the help text of gcloud commands, run:
  gcloud help -- SEARCH_TERMS
"""
BAD_FLAG = """ERROR: (gcloud.compute.tpus.tpu-vm.create) argument --labels: Bad syntax for dict \
arg: [a]
Usage: gcloud compute tpus tpu-vm create (TPU : --zone=ZONE) --version=VERSION [optional flags]
"""
SSH = "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255].\n"
BUCKET = """ERROR: (gcloud.storage.cp) HTTPError 403: a@b does not have storage.objects.create \
access to the bucket. Permission 'storage.objects.create' denied.
"""
NO_NETWORK = """ERROR: (gcloud.compute.tpus.tpu-vm.create) {
  "code": 5,
  "message": "The resource 'projects/p/global/networks/default' was not found"
}
"""
NO_ADDRESS = """ERROR: (gcloud.compute.tpus.tpu-vm.create) FAILED_PRECONDITION: Constraint \
constraints/compute.vmExternalIpAccess violated for project p.
"""


@pytest.mark.parametrize(
    ("stderr", "kind", "reason", "hint"),
    [
        (
            NO_CAPACITY,
            Kind.CAPACITY,
            'RESOURCE_EXHAUSTED: There|"us-x1-a"; try another',
            "--queued",
        ),
        (
            DENIED,
            Kind.PERMISSION,
            "PERMISSION_DENIED: Permission|create' denied",
            "roles/tpu.admin",
        ),
        (QUOTA, Kind.QUOTA, "RESOURCE_EXHAUSTED: Quota|Limit: 0 in zone us-x1-a.", "ask for quota"),
        (TOO_OFTEN, Kind.BUSY, "RESOURCE_EXHAUSTED: Quota exceeded|'tpu.googleapis.com'", ""),
        (PAGE, Kind.NETWORK, "HTTP 502 from http://h/v2/nodes|nodes", "is the network up"),
        (CRASH, Kind.NETWORK, "gcloud crashed (Connect|[Errno 111]'))", "is the network up"),
        (NO_ACCOUNT, Kind.PERMISSION, "You do not|obtain new credentials.", "gcloud auth login"),
        (PROMPT, Kind.OTHER, "PERMISSION_DENIED: Cloud|or it is disabled.", "services enable"),
        (WRONG_FLAGS, Kind.USAGE, "unrecognized|--no-such --other=3 (did you mean '--zone'?)", ""),
        (BAD_FLAG, Kind.USAGE, "argument --labels: Bad|syntax for dict arg: [a]", ""),
        (SSH, Kind.NETWORK, "[/usr/bin/ssh] exited|with return code [255].", "port 22"),
        (BUCKET, Kind.PERMISSION, "HTTPError 403: a@b|denied.", "roles/storage.objectUser"),
        (NO_NETWORK, Kind.OTHER, "NOT_FOUND: The|default' was not found", "--network=NAME"),
        (NO_ADDRESS, Kind.OTHER, "FAILED_PRECONDITION: Con|for project p.", "--internal-ips"),
        ("WARNING: old\nERROR: (gcloud.x.y) {broken\n", Kind.OTHER, "{|broken", ""),
        ("WARNING: old\nit broke\nUpdates are available\n", Kind.OTHER, "it|broke", ""),
        ("", Kind.OTHER, "it failed|and printed nothing", ""),
    ],
)
def test_forms(stderr, kind, reason, hint):
    complaint = gcloud_errors.read(stderr)
    begins, ends = reason.split("|")
    assert complaint.kind is kind
    assert complaint.reason.startswith(begins) and complaint.reason.endswith(ends)
    assert hint in complaint.hint
    assert bool(hint) == bool(complaint.hint)
    assert "\n" not in complaint.line
    assert complaint.passes == (kind in (Kind.BUSY, Kind.NETWORK))


@pytest.mark.parametrize(
    ("code", "kind"),
    [(5, Kind.MISSING), (6, Kind.EXISTS), (13, Kind.BUSY), (14, Kind.BUSY), (3, Kind.OTHER)],
)
def test_codes_of_operations(code, kind):
    assert gcloud_errors.of_status({"code": code, "message": "x"}).kind is kind
    nested = f'ERROR: (gcloud.x) {{"error": {{"code": {code}, "message": "x"}}}}'
    assert gcloud_errors.read(nested).kind is kind


def test_long_words_are_cut():
    assert len(gcloud_errors.read(f"ERROR: (gcloud.x) {'x' * 5000}").reason) < 400

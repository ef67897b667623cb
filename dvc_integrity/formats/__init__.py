"""What a CI service reads: the outcome of a verification or a survey as text in its format.

Every function here is pure: from an ``Outcome`` to text. Names come from metadata or from a disk
and are untrusted: they pass ``printable`` and then the escaping of the format.
"""

from dvc_integrity.formats.github import summary, workflow_commands
from dvc_integrity.formats.junit import junit
from dvc_integrity.formats.outcome import Located, Outcome
from dvc_integrity.formats.prometheus import prometheus
from dvc_integrity.formats.sarif import sarif

__all__ = ["Located", "Outcome", "junit", "prometheus", "sarif", "summary", "workflow_commands"]
